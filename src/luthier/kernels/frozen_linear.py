"""A frozen linear layer inside a function of ours: its product and its weight, plain or packed by bitsandbytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_frozen_linear(layer: Any) -> bool:
    """Is it a linear layer without a gradient of its own, and nothing hooked into it?"""
    if getattr(getattr(layer, "weight", None), "requires_grad", True):
        return False
    if type(layer) is nn.Linear:
        return not (layer._forward_hooks or layer._forward_pre_hooks)
    return is_packed(layer)


def is_packed(layer: Any) -> bool:
    """Is its weight in 4 or 8 bit?"""
    return type(layer).__module__.startswith("bitsandbytes.") and type(layer).__name__ in ("Linear4bit", "Linear8bitLt")


def working_type(layer: Any, x: Tensor) -> torch.dtype:
    """What is computed in: autocast's type, else the weight's, else (where that is packed) the input's."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype if is_packed(layer) else layer.weight.dtype


def shaped(made: Tensor, shape: Sequence[int]) -> Tensor:
    """What a function of ours returns, in another shape: no view, for models may change it in place (Gemma 3n does)."""
    return torch.ops.aten._unsafe_view(made, list(shape))  # type: ignore[no-any-return]


def product(layer: Any, x: Tensor) -> Tensor:
    """W x + b in x's type, outside of autograd: [N, in] -> [N, out]."""
    if is_packed(layer):
        with torch.no_grad():
            made: Tensor = layer(x)
        return made
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """The weight, unpacked: [out, in]."""
    if not is_packed(layer):
        plain: Tensor = layer.weight.to(dtype)
        return plain
    from peft.utils.integrations import dequantize_bnb_weight

    return dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None)).to(dtype)
