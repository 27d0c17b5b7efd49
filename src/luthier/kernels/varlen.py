"""Attention over packed rows on a GPU: torch's kernel for sequences of many lengths, where it works.

(torch.nn.attention.varlen; Flash Attention 2, Dao 2023, arXiv 2307.08691.) It takes half precision, has no mask but
the causal triangle and a window, and no dropout. A trial decides whether it works here.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import _disable_current_modes

from luthier.kernels.frozen_linear import autocast_type

ROWS = "luthier_rows"


class PackedRows(NamedTuple):
    """Where packed rows begin and end, as the kernel wants it."""

    edges: Tensor
    """int32 [rows + 1], on the device of the queries"""
    longest: int


def packs(position_ids: Tensor, query: Tensor) -> bool:
    """Whether the batch is one sequence, with a position for each of its tokens."""
    return query.size(0) == 1 and position_ids.shape == (1, query.size(2))


def packed_rows(position_ids: Tensor | None, query: Tensor) -> PackedRows | None:
    """The rows of one sequence, each from position 0; None where the batch is not one sequence.

    Kept with the positions, which all layers get: the length of the longest is read from the GPU once a pass.
    """
    if position_ids is None or not packs(position_ids, query):
        return None
    known: PackedRows | None = getattr(position_ids, ROWS, None)
    if known is None:
        begins = (position_ids[0] == 0).nonzero()[:, 0]
        edges = torch.cat([begins, begins.new_tensor([query.size(2)])]).to(torch.int32)
        known = PackedRows(edges, int(edges.diff().max()))
        setattr(position_ids, ROWS, known)
    return known


def attend(q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float | None, window: int | None) -> Tensor:
    """Queries [heads, T, D], keys and values [key heads, T, D] -> [T, heads, D], each row by itself and causal.

    A token sees `window` tokens, itself among them; None means all before it. A `scale` of None is D ** -0.5.
    """
    q, k, v = (x.transpose(0, 1).to(autocast_type(q, q.dtype)) for x in (q, k, v))
    before = -1 if window is None or window >= rows.longest else window - 1
    return kernel(q, k, v, rows, scale, (before, 0))


def kernel(q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float | None, window: tuple[int, int]) -> Tensor:
    """The kernel of torch, for [T, heads, D] and twice [T, key heads, D]."""
    from torch.nn.attention.varlen import varlen_attn

    edges, longest = (rows.edges, rows.edges), (rows.longest, rows.longest)
    options: dict[str, Any] = {"scale": scale, "window_size": window, "enable_gqa": q.size(1) != k.size(1)}
    return varlen_attn(q, k, v, *edges, *longest, **options)  # type: ignore[return-value]


def serves(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel works for tensors like these, [1, heads, T, D]. Tried once for each kind of them."""
    dtype = autocast_type(query, query.dtype)
    if dtype not in (torch.bfloat16, torch.float16) or value.size(-1) != query.size(-1):
        return False
    return _proved(dtype, query.device, query.size(1), key.size(1), query.size(-1))


@lru_cache(maxsize=32)
def _proved(dtype: torch.dtype, device: torch.device, heads: int, few: int, width: int) -> bool:
    """Whether values and gradients of two rows are sdpa's in float32, to the rounding of `dtype`, also with a window.

    False as well where the kernel is missing or raises.
    """
    # Also asked while a run is planned, on tensors without numbers.
    with _disable_current_modes(), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        try:
            return all(_agrees(dtype, device, heads, few, width, window) for window in (None, 20))
        except (RuntimeError, ImportError, TypeError, ValueError):
            return False


def _agrees(dtype: torch.dtype, device: torch.device, heads: int, few: int, width: int, window: int | None) -> bool:
    edges, longest, draw = (0, 37, 128), 91, torch.Generator(device).manual_seed(0)
    given = [
        torch.randn(some, edges[-1], width, generator=draw, device=device).to(dtype).requires_grad_()
        for some in (heads, few, few)
    ]
    true = [x.detach().float().requires_grad_() for x in given]
    want = torch.cat([_row(*(x[:, begin:end] for x in true), window=window) for begin, end in pairwise(edges)])
    grad = torch.randn(want.shape, generator=draw, device=device)
    right = [want, *torch.autograd.grad(want, true, grad)]
    rows = PackedRows(torch.tensor(edges, dtype=torch.int32, device=device), longest)
    got = attend(given[0], given[1], given[2], rows, None, window)
    ours = [got, *torch.autograd.grad(got, given, grad.to(dtype))]
    pairs = zip(ours, right, strict=True)
    return all(float((one.float() - other).norm()) <= 0.02 * float(other.norm()) for one, other in pairs)


def _row(query: Tensor, key: Tensor, value: Tensor, *, window: int | None) -> Tensor:
    """The usual attention of one row, [heads, n, D] -> [n, heads, D]."""
    size = query.size(1)
    seen = torch.ones(size, size, dtype=torch.bool, device=query.device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    out = scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=seen, enable_gqa=True)
    return out[0].transpose(0, 1)
