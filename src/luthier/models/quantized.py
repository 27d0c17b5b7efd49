"""Models that bitsandbytes packed: kept whole on a CPU, and unpacked."""

from typing import Any

import torch
from torch import nn


def repair(model: nn.Module) -> None:
    """To be called as soon as a packed model is loaded, before it is asked anything."""
    module: Any
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights in place at the first evaluation on a CPU with avx512_bf16, after
        # which gradients and files are wrong without a word. Goes when bitsandbytes stops doing that (seen in 0.50.2).
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if type(module).__name__ == "Linear8bitLt":
            module.register_forward_pre_hook(_keep_scales)


def unpack(model: nn.Module) -> nn.Module:
    """The same model in float32, which can be saved. Takes `model` over."""
    plain: Any = model.dequantize(dtype=torch.float32).float()  # type: ignore[operator]
    # What read packed files would be undone when it is saved, and cannot be. Goes when transformers' `dequantize`
    # forgets it itself (seen in 5.23).
    made = getattr(plain, "_weight_conversions", None)
    if made is not None:
        kinds = [{type(step).__module__ for step in getattr(each, "operations", ())} for each in made]
        kept = zip(made, kinds, strict=True)
        plain._weight_conversions = [each for each, own in kept if not any("bitsandbytes" in name for name in own)]
    return plain  # type: ignore[no-any-return]


def _keep_scales(layer: Any, args: Any) -> None:
    """Give int8 weights their scales back, which DoRA loses when it reads them on a CPU (seen in PEFT 0.21.2)."""
    if layer.weight.CB is not None and layer.weight.SCB is None:
        layer.weight.SCB = layer.state.SCB
