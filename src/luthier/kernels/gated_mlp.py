"""The gated feed-forward block in one autograd function: down(act(gate(x)) * up(x)), with LoRA on any of the three.

Only gate and up are kept, and the rest is recomputed, a few tokens at a time. (Shazeer 2020, arXiv 2002.05202;
recomputed as in Hsu et al. 2024, arXiv 2410.10989, section 3.)
"""

from collections.abc import Callable, Iterable
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.kernels.frozen_linear import evaluating, is_frozen_linear, is_packed, parts, shaped, working_type
from luthier.kernels.lora import LoraPath, LowRank, backward, forward, low_rank

LAYERS = ("gate_proj", "up_proj", "down_proj")
ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "silu": (F.silu, torch.ops.aten.silu_backward),
    "gelu": (F.gelu, torch.ops.aten.gelu_backward),
    "gelu_tanh": (partial(F.gelu, approximate="tanh"), partial(torch.ops.aten.gelu_backward, approximate="tanh")),
}
"""Name -> (function of x, function of the output's gradient and x)."""


def patch(modules: Iterable[nn.Module], *, trial: bool = True) -> list[nn.Module]:
    """Let the gated blocks among `modules` compute so, where a `trial` gives their own numbers; returns these."""
    # A block decides at each call: a layer that trains itself, or has more beside it than LoRA, uses the model's code.
    found: list[nn.Module] = []
    proved: dict[type, bool] = {}
    module: Any
    for module in modules:
        if all(isinstance(getattr(module, name, None), nn.Module) for name in (*LAYERS, "act_fn")):
            x = torch.linspace(-6, 6, 97)
            known = next((name for name, own in ACTIVATIONS.items() if torch.equal(module.act_fn(x), own[0](x))), None)
            if type(module) not in proved:
                proved[type(module)] = known is not None and (not trial or _same(module, known))
            if proved[type(module)]:
                module.known_activation, module.forward = known, MethodType(_forward, module)
                found.append(module)
    return found


def _same(module: Any, act: str) -> bool:
    """Whether the block gives what `gated` makes of its layers, tried on three tokens."""
    with evaluating(module):  # first of all: a mask drawn here would move torch's random state
        if (paths := _paths(module)) is None:
            return False
        layer, width = paths[0][0], paths[0][0].in_features
        # Of the type that the block itself will see: fixed numbers, so that nothing is drawn from torch's state.
        dtype = torch.float32 if is_packed(layer) else layer.weight.dtype
        x = torch.linspace(-1.7, 2.3, 3 * width, device=layer.weight.device).sin().view(1, 3, width).to(dtype)
        usual, ours = type(module).forward(module, x).float(), gated(x, act, paths).float()
        allowed = 1e-5 if dtype == torch.float32 and not is_packed(layer) else 0.02
        return bool((usual - ours).norm() <= allowed * usual.norm())


def _paths(block: Any) -> list[LoraPath] | None:
    """The paths of gate, up and down; None where one is more than a frozen layer without a bias, and LoRA beside it."""
    found: list[LoraPath] = []
    for name in LAYERS:
        layer = getattr(block, name)
        low = low_rank(layer) if hasattr(layer, "lora_A") else None
        frozen = layer.base_layer if low is not None else layer
        if not is_frozen_linear(frozen) or frozen.bias is not None:
            return None
        found.append((frozen, low))
    return found


def _forward(self: Any, x: Tensor) -> Tensor:
    if (paths := _paths(self)) is None:
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    return gated(x, self.known_activation, paths)


def gated(x: Tensor, act: str, paths: list[LoraPath]) -> Tensor:
    """down(act(gate(x)) * up(x)): [..., H] -> [..., H]; `paths` are gate's, up's and down's."""
    tensors = [t for _, low in paths for t in ((low.a, low.b) if low is not None else (None, None))]
    return _Gated.apply(x, act, paths, *tensors)  # type: ignore[no-any-return, no-untyped-call]


class _Gated(torch.autograd.Function):
    """The six tensors are the A and B of the three paths: autograd must see them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: str, paths: list[LoraPath], *pairs: Tensor | None) -> Tensor:
        dtype = working_type(paths[0][0], x)
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.size(-1)).to(dtype)  # [N, H]
            gate, gate_low = forward(flat, *paths[0])  # [N, F]
            up, up_low = forward(flat, *paths[1])
            out, down_low = forward(_product(act, gate, up), *paths[2])
        ctx.save_for_backward(x, gate, up, gate_low, up_low, down_low, *pairs)
        ctx.how = act, dtype, [(layer, low and (low.scale, low.dropped)) for layer, low in paths]
        return shaped(out, (*x.shape[:-1], out.size(-1)))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        x, gate, up, gate_low, up_low, down_low, *pairs = ctx.saved_tensors
        act, dtype, kept = ctx.how
        gating, raising, lowering = (
            (layer, rest and LowRank(pairs[2 * i], pairs[2 * i + 1], *rest)) for i, (layer, rest) in enumerate(kept)
        )
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.size(-1)).to(dtype)
            grad = grad_output.reshape(-1, grad_output.size(-1)).to(dtype)
            inner = _product(act, gate, up) if lowering[1] else flat  # only A's gradient needs it
            grad_inner, *grad_down = backward(grad, inner, lowering, down_low)
            assert grad_inner is not None
            grad_up = inner if lowering[1] else torch.empty_like(up)  # in the same memory
            function, derivative = ACTIVATIONS[act]
            for part in parts(gate, gate.element_size()):
                torch.mul(function(gate[part]), grad_inner[part], out=grad_up[part])
                grad_inner[part] = derivative(grad_inner[part].mul_(up[part]), gate[part])
            wants_x = ctx.needs_input_grad[0]
            grad_x, *grad_gate_path = backward(grad_inner, flat, gating, gate_low, wants_x)
            grad_x, *grad_up_path = backward(grad_up, flat, raising, up_low, wants_x, into=grad_x)
        out = None if grad_x is None else grad_x.to(x.dtype).view(x.shape)
        return out, None, None, *grad_gate_path, *grad_up_path, *grad_down


def _product(act: str, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) * up."""
    out = torch.empty_like(gate)
    for part in parts(gate, gate.element_size()):
        torch.mul(ACTIVATIONS[act][0](gate[part]), up[part], out=out[part])
    return out
