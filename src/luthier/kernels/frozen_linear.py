"""A frozen linear layer inside a function of ours: its type and its weight, plain or packed by bitsandbytes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PART_BYTES = 2**20
"""Bytes of a tensor that are worked on at a time: they should stay in a processor's cache."""


def parts(x: Tensor, itemsize: int, limit: int | None = None) -> Iterator[slice]:
    """Some rows of [N, width] at a time; all at once on a GPU, where each call costs a launch."""
    rows = len(x) if x.is_cuda else max(1, (limit or PART_BYTES) // (itemsize * x.size(1)))
    return (slice(start, start + rows) for start in range(0, len(x), rows))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which nothing is dropped and no gradient kept; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def is_frozen_linear(layer: Any) -> bool:
    """Whether it is a linear layer without a gradient of its own, and nothing is hooked into it."""
    if getattr(getattr(layer, "weight", None), "requires_grad", True):
        return False
    if type(layer) is nn.Linear:
        return not (layer._forward_hooks or layer._forward_pre_hooks)
    return is_packed(layer)


def is_packed(layer: Any) -> bool:
    """Whether its weight is in 4 or 8 bit."""
    return type(layer).__module__.startswith("bitsandbytes.") and type(layer).__name__ in ("Linear4bit", "Linear8bitLt")


def working_type(layer: Any, x: Tensor) -> torch.dtype:
    """The type to compute in: autocast's, else the weight's, else (where that is packed) the input's."""
    return autocast_type(x, x.dtype if is_packed(layer) else layer.weight.dtype)


def autocast_type(x: Tensor, otherwise: torch.dtype) -> torch.dtype:
    """The type that autocast computes in on the device of `x`, or `otherwise` where it is off."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else otherwise


def shaped(made: Tensor, shape: Sequence[int]) -> Tensor:
    """The result of an autograd function in another shape: no view, for models may change it in place (Gemma 3n)."""
    return torch.ops.aten._unsafe_view(made, list(shape))  # type: ignore[no-any-return]


def weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """The weight, unpacked: [out, in]."""
    if not is_packed(layer):
        return layer.weight.to(dtype)  # type: ignore[no-any-return]
    from peft.utils.integrations import dequantize_bnb_weight

    return dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None)).to(dtype)
