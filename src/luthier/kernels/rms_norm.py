"""RMSNorm in one autograd function: x / rms(x) * weight, keeping its input and one number a token.

Written out in torch it keeps three copies of its input, two in float32. (Zhang and Sennrich 2019, arXiv 1910.07467.)
"""

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from luthier.kernels.frozen_linear import parts, shaped


def patch(modules: Iterable[nn.Module], *, trial: bool = True) -> list[nn.Module]:
    """Let the RMSNorms among `modules` compute so, where a `trial` gives their own numbers; returns these."""
    found: list[nn.Module] = []
    for module in modules:
        norm_weight = vars(module).get("_parameters", {}).get("weight")
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if norm_weight is None or norm_weight.ndim != 1 or eps is None or not type(module).__name__.endswith("RMSNorm"):
            continue
        if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
            continue
        plus_one = _offset(module, norm_weight, float(eps)) if trial else False
        if plus_one is not None:
            module.plus_one, module.small = plus_one, float(eps)  # type: ignore[assignment]
            module.forward = MethodType(_forward, module)
            found.append(module)
    return found


@torch.no_grad()
def _offset(module: nn.Module, weight: Tensor, eps: float) -> bool | None:
    """Whether it scales by 1 + weight, as Gemma's does, or by weight; None where it does something else."""
    x = torch.linspace(-1.7, 2.3, 3 * len(weight), device=weight.device).mul(40).sin().view(1, 3, -1).to(weight.dtype)
    usual = type(module).forward(module, x)
    for plus_one in (False, True):
        ours = rms_norm(x, weight, eps, plus_one)
        if ours.dtype == usual.dtype and (ours.float() - usual.float()).norm() <= 1e-6 * usual.float().norm():
            return plus_one
    return None


def _forward(self: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, self.weight, self.small, self.plus_one)


def rms_norm(x: Tensor, weight: Tensor, eps: float, plus_one: bool = False) -> Tensor:
    """Normalize: x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32: [..., H], [H] -> [..., H].

    With `plus_one` by 1 + weight, rounded once, as Gemma's code does; else rounded before the weight, as Llama's does.
    """
    return _RMSNorm.apply(x, weight, eps, plus_one)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, plus_one: bool) -> Tensor:
        flat = x.reshape(-1, x.size(-1))
        dtype = x.dtype if plus_one else torch.promote_types(x.dtype, weight.dtype)
        out = torch.empty(flat.shape, device=x.device, dtype=dtype)
        scales = torch.empty(len(flat), 1, device=x.device)
        for part in parts(flat, 4):
            wide = flat[part].float()
            scales[part] = wide.square().mean(1, keepdim=True).add_(eps).rsqrt_()
            wide = wide * scales[part]
            out[part] = wide.mul_(1 + weight.float()) if plus_one else wide.to(x.dtype) * weight
        ctx.save_for_backward(x, weight, scales)
        ctx.plus_one = plus_one
        return shaped(out, x.shape)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        x, weight, scales = ctx.saved_tensors
        flat, grads = x.reshape(-1, x.size(-1)), grad_output.reshape(-1, x.size(-1))
        gain = 1 + weight.float() if ctx.plus_one else weight.float()
        grad_x = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(gain) if ctx.needs_input_grad[1] else None
        for part in parts(flat, 4):
            normed = flat[part].float() * scales[part]
            grad = grads[part].float()
            if grad_weight is not None:
                grad_weight += (grad * normed).sum(0)
            if grad_x is not None:
                grad = grad * gain
                along = (grad * normed).mean(1, keepdim=True)
                grad_x[part] = grad.sub_(normed.mul_(along)).mul_(scales[part])
        shaped_x = None if grad_x is None else grad_x.view(x.shape)
        return shaped_x, None if grad_weight is None else grad_weight.to(weight.dtype), None, None
