"""LoRA's linear layer in one autograd function: y = W x + b + s B A dropout(x).

PEFT computes the low-rank path beside the layer as four operations, and autograd keeps a copy of the input for them,
another of the dropped-out one and its mask, in each adapted layer. Here the path is added into the layer's own output,
the mask is drawn anew in the backward pass from a seed, and kept are the layer's input, which its neighbours share,
and A x. (Hu et al. 2021, arXiv 2106.09685, section 4; regenerated masks as in Dao et al. 2022, arXiv 2205.14135.)
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 256
"""Dropout rates are rounded to one in so many: a byte a number is drawn, a quarter of the work of a float."""


def fuse(model: nn.Module) -> None:
    """Let the LoRA layers of a PEFT model compute so, where nothing about them asks for more.

    A layer decides at each call. Several active adapters, DoRA, merged or disabled adapters, a base layer that is
    packed, hooked or trains itself, and calls with arguments of their own go PEFT's way.
    """
    from peft.tuners.lora.layer import Linear

    for module in model.modules():
        if type(module) is Linear:
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    base, active = self.base_layer, self.active_adapters
    name = active[0] if len(active) == 1 else None
    if (
        args or kwargs or name not in self.lora_A or self.disable_adapters or self.merged or name in self.lora_variant
        or type(base) is not nn.Linear or base.weight.requires_grad or base._forward_hooks or base._forward_pre_hooks
        or self.lora_B[name].bias is not None
    ):  # fmt: skip
        made: Tensor = type(self).forward(self, x, *args, **kwargs)
        return made
    dropout = self.lora_dropout[name]
    steps = round(getattr(dropout, "p", 0.0) * STEPS) if dropout.training else 0
    seed = int(torch.randint(2**62, (1,))) if steps else 0  # of torch's own state, so that a resumed run draws the same
    return lora_linear(
        x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight,
        scale=self.scaling[name], steps=steps, seed=seed,
    )  # fmt: skip


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, *, scale: float, steps: int = 0, seed: int = 0
) -> Tensor:
    """[..., in], [out, in], [out], [rank, in], [out, rank] -> [..., out]; `steps` of STEPS inputs of A are dropped."""
    made: Tensor = _LoraLinear.apply(x, weight, bias, a, b, scale, steps, seed)  # type: ignore[no-untyped-call]
    return made


class _LoraLinear(torch.autograd.Function):
    """The weight is frozen: it has no gradient here."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        steps: int,
        seed: int,
    ) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        scale *= STEPS / (STEPS - steps)
        with torch.autocast(kind, enabled=False):
            flat = x.reshape(-1, x.size(-1)).to(dtype)  # [N, in]
            made = F.linear(flat, weight.to(dtype), None if bias is None else bias.to(dtype))
            low = _dropped(flat, steps, seed) @ a.to(dtype).t()  # [N, rank]
            made.addmm_(low, b.to(dtype).t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.how = dtype, scale, steps, seed, None if bias is None else bias.dtype
        return made.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        x, weight, a, b, low = ctx.saved_tensors
        dtype, scale, steps, seed, bias_type = ctx.how
        wants = ctx.needs_input_grad
        with torch.autocast(x.device.type, enabled=False):
            slope = upstream.reshape(-1, upstream.size(-1)).to(dtype)  # [N, out]
            through = (slope @ b.to(dtype)).mul_(scale)  # [N, rank]
            to_b = (slope.t() @ low).mul_(scale).to(b.dtype) if wants[4] else None
            to_a = to_x = None
            to_bias = slope.sum(0).to(bias_type) if wants[2] else None
            if wants[3]:
                flat = x.reshape(-1, x.size(-1)).to(dtype)
                to_a = (through.t() @ _dropped(flat, steps, seed)).to(a.dtype)
            if wants[0]:
                to_x = (slope @ weight.to(dtype)).to(x.dtype)  # two paths meet here: the sum is in the input's type
                if steps or dtype != x.dtype:
                    to_x += _dropped(through @ a.to(dtype), steps, seed)
                else:
                    to_x.addmm_(through, a.to(dtype))
                to_x = to_x.view(x.shape)
        return to_x, None, to_bias, to_a, to_b, None, None, None


def _dropped(x: Tensor, steps: int, seed: int) -> Tensor:
    """X with each number 0 with a chance of steps / STEPS, the same for the same seed; not scaled up."""
    if not steps:
        return x
    draw = torch.Generator(x.device).manual_seed(seed)
    kept = torch.empty(x.shape, dtype=torch.uint8, device=x.device).random_(STEPS, generator=draw) >= steps
    return x * kept
