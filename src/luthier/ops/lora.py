"""LoRA's linear layer in one autograd function: y = W x + b + s B A dropout(x).

PEFT computes the low-rank path beside the layer as four operations, and autograd keeps a copy of the input for them,
another of the dropped-out one and its mask, in each adapted layer. Here the path is added into the layer's own output,
the mask is made anew in the backward pass from a seed, and kept are the layer's input, which its neighbours share,
and A x. (Hu et al. 2021, arXiv 2106.09685, section 4; regenerated masks as in Dao et al. 2022, arXiv 2205.14135.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOL = 2**22
"""Random zeros and ones that all dropout masks are windows of."""
BLOCK = POOL // 4
"""Most numbers that one window masks."""


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
    return lora_linear(
        x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight,
        scale=self.scaling[name], rate=rate_of(self.lora_dropout[name]),
    )  # fmt: skip


def rate_of(dropout: nn.Module) -> float:
    """What PEFT's module drops now: an Identity where nothing, a Dropout that does so in training alone."""
    return getattr(dropout, "p", 0.0) if dropout.training else 0.0


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, *, scale: float, rate: float = 0.0
) -> Tensor:
    """[..., in], [out, in], [out], [rank, in], [out, rank] -> [..., out]; a share `rate` of A's inputs is dropped."""
    made: Tensor = _LoraLinear.apply(x, weight, bias, a, b, scale, Dropped.draw(rate))  # type: ignore[no-untyped-call]
    return made


@dataclass(frozen=True, slots=True)
class Dropped:
    """A dropout mask that is never kept: a share `rate` of zeros, the same whenever it is asked for.

    To draw a number for each input takes longer than LoRA's products. So zeros and ones are drawn once, and a mask is
    a window of them at an offset that the seed says, one for each block of tokens. Where the windows begin is as good
    as independent from call to call, and so is what they hold: of any two places, chance alone says whether both drop.
    """

    rate: float
    seed: int

    @classmethod
    def draw(cls, rate: float) -> Dropped | None:
        """A mask out of torch's own random state, so that a resumed run draws the same; None where nothing drops."""
        return cls(rate, int(torch.randint(2**62, (1,)))) if rate else None

    @property
    def scale(self) -> float:
        """What is left counts for what was dropped."""
        return 1 / (1 - self.rate)

    def blocks(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(tokens, their mask of x's type) for the tokens of [N, width], block by block."""
        pool = _pool(self.rate, x.dtype, x.device)
        width = x.size(1)
        if width > BLOCK:
            raise ValueError(f"a layer of {width} inputs is wider than a dropout mask")
        tokens = BLOCK // width
        draw = torch.Generator().manual_seed(self.seed)
        starts = range(0, len(x), tokens)
        offsets: list[int] = torch.randint(POOL - BLOCK, (len(starts),), generator=draw).tolist()
        for start, offset in zip(starts, offsets, strict=True):
            part = slice(start, min(start + tokens, len(x)))
            yield part, pool[offset : offset + (part.stop - start) * width].view(-1, width)


@lru_cache(maxsize=4)
def _pool(rate: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    made = torch.empty(POOL).bernoulli_(1 - rate, generator=torch.Generator().manual_seed(0))
    return made.to(device, dtype)


class _LoraLinear(torch.autograd.Function):
    """The weight is frozen: it has no gradient here."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float,
        dropped: Dropped | None,
    ) -> Tensor:  # fmt: skip
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        with torch.autocast(kind, enabled=False):
            flat = x.reshape(-1, x.size(-1)).to(dtype)  # [N, in]
            made = F.linear(flat, weight.to(dtype), None if bias is None else bias.to(dtype))
            low = project(flat, a.to(dtype), dropped)  # [N, rank]
            made.addmm_(low, b.to(dtype).t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.how = dtype, scale, dropped, None if bias is None else bias.dtype
        return made.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        x, weight, a, b, low = ctx.saved_tensors
        dtype, scale, dropped, bias_type = ctx.how
        wants = ctx.needs_input_grad
        with torch.autocast(x.device.type, enabled=False):
            slope = upstream.reshape(-1, upstream.size(-1)).to(dtype)  # [N, out]
            through = (slope @ b.to(dtype)).mul_(scale)  # [N, rank]
            to_b = (slope.t() @ low).mul_(scale).to(b.dtype) if wants[4] else None
            to_bias = slope.sum(0).to(bias_type) if wants[2] else None
            to_a = to_x = None
            if wants[3]:
                to_a = slope_of_a(through, x.reshape(-1, x.size(-1)).to(dtype), dropped).to(a.dtype)
            if wants[0]:
                to_x = slope @ weight.to(dtype)
                add_low(to_x, through, a.to(dtype), dropped)
                to_x = to_x.to(x.dtype).view(x.shape)
        return to_x, None, to_bias, to_a, to_b, None, None


def project(x: Tensor, a: Tensor, dropped: Dropped | None) -> Tensor:
    """A dropout(x): [N, in], [rank, in] -> [N, rank]."""
    if dropped is None:
        return x @ a.t()
    low = x.new_empty(len(x), len(a))
    for part, mask in dropped.blocks(x):
        torch.mm(x[part] * mask, a.t(), out=low[part])
    return low.mul_(dropped.scale)


def slope_of_a(through: Tensor, x: Tensor, dropped: Dropped | None) -> Tensor:
    """Gradient of A from that of A dropout(x): [N, rank], [N, in] -> [rank, in]."""
    if dropped is None:
        return through.t() @ x
    made = torch.zeros(through.size(1), x.size(1), device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    for part, mask in dropped.blocks(x):
        made += through[part].t() @ (x[part] * mask)
    return made.mul_(dropped.scale)


def add_low(to_x: Tensor, through: Tensor, a: Tensor, dropped: Dropped | None) -> None:
    """Add to the gradient of x what comes through A: [N, in], [N, rank], [rank, in]."""
    if dropped is None:
        to_x.addmm_(through, a)
        return
    for part, mask in dropped.blocks(to_x):
        to_x[part].addcmul_(through[part] @ a, mask, value=dropped.scale)
