"""LoRA's linear layer in one autograd function: y = W x + b + s B A dropout(x).

The path is added into the layer's own output, the mask is recomputed in the backward pass from a seed, and kept are
only the input, which neighboring layers share, and A x. (Hu et al. 2021, arXiv 2106.09685, section 4; regenerated masks
as in Dao et al. 2022, arXiv 2205.14135.)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import MethodType
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.kernels.frozen_linear import is_frozen_linear, is_packed, shaped, weight, working_type

POOL = 2**22
"""Random zeros and ones that all dropout masks are windows of."""
BLOCK = POOL // 4
"""Most numbers that one window masks."""


def patch(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Let the LoRA layers among `modules` compute so, where nothing about them asks for more; returns these layers."""
    # A layer decides at each call: PEFT's code serves what is more than one active adapter on a frozen linear layer.
    from peft.tuners.lora.layer import LoraLayer

    found: list[nn.Module] = [m for m in modules if isinstance(m, LoraLayer) and _is_linear(m)]
    for module in found:
        module.forward = MethodType(_forward, module)
    return found


def _is_linear(module: nn.Module) -> bool:
    own = type(module)
    return own.__module__ in ("peft.tuners.lora.layer", "peft.tuners.lora.bnb") and own.__name__.startswith("Linear")


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    low = None if args or kwargs else low_rank(self)
    if low is None:
        return type(self).forward(self, x, *args, **kwargs)  # type: ignore[no-any-return]
    return lora_linear(x, self.base_layer, low)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A dropout mask that is never kept: windows, given by `seed`, of ones and a share `rate` of zeros drawn once."""

    rate: float
    seed: int

    @property
    def scale(self) -> float:
        """Factor on what is left."""
        return 1 / (1 - self.rate)

    def blocks(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(tokens, their mask of x's type) for the tokens of [N, width], block by block."""
        pool = _pool(self.rate, x.dtype, x.device)
        width, tokens = x.size(1), BLOCK // x.size(1)
        draw = torch.Generator().manual_seed(self.seed)
        starts = range(0, len(x), tokens)
        offsets: list[int] = torch.randint(POOL - BLOCK, (len(starts),), generator=draw).tolist()
        for start, offset in zip(starts, offsets, strict=True):
            part = slice(start, min(start + tokens, len(x)))
            yield part, pool[offset : offset + (part.stop - start) * width].view(-1, width)


@lru_cache(maxsize=4)
def _pool(rate: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(POOL).bernoulli_(1 - rate, generator=torch.Generator().manual_seed(0)).to(device, dtype)


@dataclass(frozen=True, slots=True)
class LowRank:
    """The path beside a frozen layer: scale B A dropout(x)."""

    a: Tensor
    """[rank, in]"""
    b: Tensor
    """[out, rank]"""
    scale: float
    dropped: Dropped | None


LoraPath: TypeAlias = tuple[Any, LowRank | None]
"""A frozen layer and what is beside it."""


def low_rank(layer: Any) -> LowRank | None:
    """The one active path of a PEFT layer, with a mask of its own; None where the layer does more, or nothing."""
    if not _is_linear(layer):  # AdaLoRA's layer has an A and a B as well
        return None
    active = layer.active_adapters
    name = active[0] if len(active) == 1 else None
    if name not in layer.lora_A or layer.disable_adapters or layer.merged or name in layer.lora_variant:
        return None
    if layer.lora_B[name].bias is not None or not is_frozen_linear(layer.base_layer):
        return None
    dropout = layer.lora_dropout[name]  # an Identity where PEFT drops nothing
    rate = getattr(dropout, "p", 0.0) if dropout.training else 0.0
    dropped = Dropped(rate, int(torch.randint(2**62, (1,)))) if rate else None  # a resumed run draws the same
    return LowRank(layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]), dropped)


def lora_linear(x: Tensor, layer: Any, low: LowRank) -> Tensor:
    """The frozen `layer` and the path beside it: [..., in] -> [..., out]."""
    bias = None if is_packed(layer) else layer.bias  # may train
    return _LoraLinear.apply(x, layer, bias, low.a, low.b, low.scale, low.dropped)  # type: ignore[no-any-return, no-untyped-call]


class _LoraLinear(torch.autograd.Function):
    """The weight is frozen: it has no gradient here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, bias: Tensor | None, a: Tensor, b: Tensor, *rest: Any) -> Tensor:
        dtype = working_type(layer, x)
        with torch.autocast(x.device.type, enabled=False):
            out, projected = forward(x.reshape(-1, x.size(-1)).to(dtype), layer, LowRank(a, b, *rest))
        ctx.save_for_backward(x, a, b, projected)
        ctx.how = layer, dtype, rest, None if bias is None else bias.dtype
        return shaped(out, (*x.shape[:-1], out.size(-1)))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        x, a, b, projected = ctx.saved_tensors
        layer, dtype, rest, bias_type = ctx.how
        wants_x, _, wants_bias, *_ = ctx.needs_input_grad
        with torch.autocast(x.device.type, enabled=False):
            grad = grad_output.reshape(-1, grad_output.size(-1)).to(dtype)  # [N, out]
            grad_bias = grad.sum(0).to(bias_type) if wants_bias else None
            flat = x.reshape(-1, x.size(-1)).to(dtype)
            grad_x, grad_a, grad_b = backward(grad, flat, (layer, LowRank(a, b, *rest)), projected, wants_x)
        return None if grad_x is None else grad_x.to(x.dtype).view(x.shape), None, grad_bias, grad_a, grad_b, None, None


def forward(x: Tensor, layer: Any, low: LowRank | None) -> tuple[Tensor, Tensor | None]:
    """([N, out], A dropout(x): [N, rank]) of [N, in], in x's type and outside of autograd."""
    if is_packed(layer):
        with torch.no_grad():
            out: Tensor = layer(x)
    else:
        out = F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))
    if low is None:
        return out, None
    a = low.a.to(x.dtype)
    if low.dropped is None:
        projected = x @ a.t()
    else:
        projected = x.new_empty(len(x), len(a))
        for part, mask in low.dropped.blocks(x):
            torch.mm(x[part] * mask, a.t(), out=projected[part])
        projected.mul_(low.dropped.scale)
    out.addmm_(projected, low.b.to(x.dtype).t(), alpha=low.scale)
    return out, projected


def backward(
    grad: Tensor, x: Tensor, path: LoraPath, projected: Tensor | None, wants_x: bool = True, into: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x (added to `into`), A and B from the output's: [N, out] -> [N, in], [rank, in], [out, rank]."""
    layer, low = path
    grad_x = None
    if wants_x:
        unpacked = weight(layer, grad.dtype)
        grad_x = grad @ unpacked if into is None else into.addmm_(grad, unpacked)
    if low is None or projected is None:
        return grad_x, None, None
    through = (grad @ low.b.to(grad.dtype)).mul_(low.scale)  # [N, rank]
    # The wide matrix on the right, as it lies in memory: the other order takes a CPU several times as long.
    grad_b = (projected.t() @ grad).t().mul(low.scale).to(low.b.dtype).contiguous()
    a, dropped = low.a.to(grad.dtype), low.dropped
    if dropped is None:
        grad_a = through.t() @ x
        if grad_x is not None:
            grad_x.addmm_(through, a)
    else:
        grad_a = torch.zeros(a.shape, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        for part, mask in dropped.blocks(x):
            grad_a += through[part].t() @ (x[part] * mask)
            if grad_x is not None:
                grad_x[part].addcmul_(through[part] @ a, mask, value=dropped.scale)
        grad_a.mul_(dropped.scale)
    return grad_x, grad_a.to(low.a.dtype), grad_b
