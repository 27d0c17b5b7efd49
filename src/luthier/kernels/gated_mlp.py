"""The gated feed-forward block in one autograd function: down(act(gate(x)) * up(x)), with LoRA on any of the three.

Autograd would keep act(gate), their product and the two halves, each as wide as the block; here the halves are kept
and the rest is made anew, a few tokens at a time. (Shazeer 2020, arXiv 2002.05202; kept and made anew as in Hsu et al.
2024, arXiv 2410.10989, section 3.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.kernels.frozen_linear import is_frozen_linear, is_packed, shaped, working_type
from luthier.kernels.lora import LowRank, backward, forward, low_rank

LAYERS = ("gate_proj", "up_proj", "down_proj")
PART_BYTES = 2**20
"""Bytes of a tensor that are worked on at a time: they should stay in a processor's cache."""


def fuse(model: nn.Module, *, trial: bool = True) -> list[nn.Module]:
    """Let the gated blocks of `model` compute so, where a trial gives their own numbers; returns these blocks.

    A block decides at each call: a layer that trains itself, or has more beside it than LoRA, goes the model's way.
    Without numbers (a model that is only planned) there is no `trial`.
    """
    found: list[nn.Module] = []
    proved: dict[type, bool] = {}
    for module in model.modules():
        if all(isinstance(getattr(module, name, None), nn.Module) for name in (*LAYERS, "act_fn")):
            if type(module) not in proved:
                proved[type(module)] = _same(module) if trial else activation(module.act_fn) is not None  # type: ignore[arg-type]
            if proved[type(module)]:
                module.known_activation = activation(module.act_fn)  # type: ignore[arg-type, assignment]
                module.forward = MethodType(_forward, module)
                found.append(module)
    return found


def activation(function: nn.Module) -> str | None:
    """Which of those we know it is, asked by trying."""
    x = torch.linspace(-6, 6, 97)
    return next((name for name, known in ACTIVATIONS.items() if torch.equal(function(x), known(x))), None)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def _slope(name: str, upstream: Tensor, x: Tensor) -> Tensor:
    if name == "silu":
        return torch.ops.aten.silu_backward(upstream, x)  # type: ignore[no-any-return]
    approximate = "tanh" if name == "gelu_tanh" else "none"
    return torch.ops.aten.gelu_backward(upstream, x, approximate=approximate)  # type: ignore[no-any-return]


@torch.no_grad()
def _same(module: Any) -> bool:
    """Does the block give what we would make of its layers? Tried on a few tokens, with nothing dropped."""
    act = activation(module.act_fn)
    if act is None:
        return False
    modes = {part: part.training for part in module.modules()}
    module.eval()  # first of all: a mask drawn here would move torch's random state
    try:
        paths = [_path(getattr(module, name)) for name in LAYERS]
        if None in paths:
            return False
        layer = paths[0][0]  # type: ignore[index]
        width = layer.in_features
        # Of the type that the block itself will see: fixed numbers, so that nothing is drawn from torch's state.
        dtype = torch.float32 if is_packed(layer) else layer.weight.dtype
        x = torch.linspace(-1.7, 2.3, 3 * width, device=layer.weight.device).sin().view(1, 3, width).to(dtype)
        usual, ours = type(module).forward(module, x).float(), gated(x, act, paths).float()  # type: ignore[arg-type]
        allowed = 1e-5 if dtype == torch.float32 and not is_packed(layer) else 0.02
        return bool((usual - ours).norm() <= allowed * usual.norm())
    finally:
        for part, mode in modes.items():
            part.training = mode


def _path(module: Any) -> tuple[Any, LowRank | None] | None:
    """(frozen layer without a bias, the LoRA beside it) where it is no more than that."""
    low = None
    if hasattr(module, "lora_A"):
        low = low_rank(module)
        if low is None:
            return None
        module = module.base_layer
    if not is_frozen_linear(module) or module.bias is not None:
        return None
    return module, low


def _forward(self: Any, x: Tensor) -> Tensor:
    paths = [_path(getattr(self, name)) for name in LAYERS]
    if None in paths:
        made: Tensor = type(self).forward(self, x)
        return made
    return gated(x, self.known_activation, paths)  # type: ignore[arg-type]


def gated(x: Tensor, act: str, paths: list[tuple[Any, LowRank | None]]) -> Tensor:
    """down(act(gate(x)) * up(x)): [..., H] -> [..., H]; `paths` are gate's, up's and down's."""
    tensors = [t for _, low in paths for t in ((low.a, low.b) if low is not None else (None, None))]
    made: Tensor = _Gated.apply(x, act, paths, *tensors)  # type: ignore[no-untyped-call]
    return made


class _Gated(torch.autograd.Function):
    """The six tensors are the A and B of the three paths: autograd must see them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, act: str, paths: list[tuple[Any, LowRank | None]], *pairs: Tensor | None
    ) -> Tensor:
        dtype = working_type(paths[0][0], x)
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.size(-1)).to(dtype)  # [N, H]
            gate, gate_low = forward(flat, *paths[0])  # [N, F]
            up, up_low = forward(flat, *paths[1])
            made, down_low = forward(_product(act, gate, up), *paths[2])
        ctx.save_for_backward(x, gate, up, gate_low, up_low, down_low, *pairs)
        ctx.how = act, dtype, [(layer, low and (low.scale, low.dropped)) for layer, low in paths]
        return shaped(made, (*x.shape[:-1], made.size(-1)))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        x, gate, up, gate_low, up_low, down_low, *pairs = ctx.saved_tensors
        act, dtype, kept = ctx.how
        (gating, gating_path), (raising, raising_path), (lowering, lowering_path) = (
            (layer, rest and LowRank(pairs[2 * i], pairs[2 * i + 1], *rest)) for i, (layer, rest) in enumerate(kept)
        )
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.size(-1)).to(dtype)
            slope = upstream.reshape(-1, upstream.size(-1)).to(dtype)
            inner = _product(act, gate, up) if lowering_path else flat  # only A's gradient asks for it
            to_inner, *to_down = backward(slope, inner, lowering, lowering_path, down_low)
            assert to_inner is not None
            to_up = inner if lowering_path else torch.empty_like(up)  # in the same memory
            for part in _parts(gate):
                torch.mul(ACTIVATIONS[act](gate[part]), to_inner[part], out=to_up[part])
                to_inner[part] = _slope(act, to_inner[part].mul_(up[part]), gate[part])
            wants_x = ctx.needs_input_grad[0]
            to_x, *to_gate_path = backward(to_inner, flat, gating, gating_path, gate_low, wants_x)
            to_x, *to_up_path = backward(to_up, flat, raising, raising_path, up_low, wants_x, into=to_x)
        made = None if to_x is None else to_x.to(x.dtype).view(x.shape)
        return made, None, None, *to_gate_path, *to_up_path, *to_down


def _product(act: str, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) * up."""
    made = torch.empty_like(gate)
    for part in _parts(gate):
        torch.mul(ACTIVATIONS[act](gate[part]), up[part], out=made[part])
    return made


def _parts(x: Tensor) -> Iterator[slice]:
    """Some rows of [N, F] at a time; all at once on a GPU, where each call costs a launch."""
    rows = len(x) if x.is_cuda else max(1, PART_BYTES // (x.element_size() * x.size(1)))
    return (slice(start, start + rows) for start in range(0, len(x), rows))
