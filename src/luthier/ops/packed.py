"""Layers that bitsandbytes packed, kept whole on a CPU."""

from __future__ import annotations

from typing import Any

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


def _keep_scales(layer: Any, args: Any) -> None:
    """Give int8 weights their scales back, which DoRA loses when it reads them on a CPU (seen in PEFT 0.21.2)."""
    if layer.weight.CB is not None and layer.weight.SCB is None:
        layer.weight.SCB = layer.state.SCB
