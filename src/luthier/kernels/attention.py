"""Attention over packed rows, row by row: what crosses from one row to another is not computed and then masked away.

On a CPU one function computes all rows where the mask is the causal triangle, else sdpa is called for each; on a GPU
torch's kernel for many lengths does (torch.nn.attention.varlen; Flash Attention 2, Dao 2023, arXiv 2307.08691), where a
trial proves it. Registered with transformers as `luthier_packed`; everything but packed rows goes to sdpa.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from luthier.kernels.frozen_linear import autocast_type

NAME = "luthier_packed"
ROWS = "luthier_packed_rows"
"""Attribute of the positions that keeps their PackedRows: all layers get the same positions."""
BLOCK = 64
"""Queries of a row that are computed at a time: more would compute more that is then hidden."""
BLOCK_BYTES = 2**22
"""Most bytes of their scores, which should stay in a processor's cache; longer rows take fewer queries."""


class PackedRows(NamedTuple):
    """Where the rows of one sequence begin, and the end of the last."""

    edges: list[int]
    starts: Tensor
    """`edges` as int32 [rows + 1], on the device of the queries."""
    longest: int


def packed_rows(position_ids: Tensor | None, query: Tensor) -> PackedRows | None:
    """The rows of one sequence, each from position 0, read off the positions once a pass; None for any other batch."""
    if position_ids is None or query.size(0) != 1 or position_ids.shape != (1, query.size(2)):
        return None
    known: PackedRows | None = getattr(position_ids, ROWS, None)
    if known is None:
        edges = [*(position_ids[0] == 0).nonzero()[:, 0].tolist(), query.size(2)]
        if edges[0] != 0:
            return None
        starts = torch.tensor(edges, dtype=torch.int32, device=query.device)
        known = PackedRows(edges, starts, max(end - begin for begin, end in pairwise(edges)))
        setattr(position_ids, ROWS, known)
    return known


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Queries [1, heads, T, D], keys and values [1, key heads, P + T, D] -> [1, T, heads, D].

    Each row begins at position 0. Keys in front of the queries (a trained prefix) are seen by every row.
    """
    position_ids, sliding_window = kwargs.pop("position_ids", None), kwargs.pop("sliding_window", None)
    front = key.size(2) - query.size(2)
    scaling, dropping = kwargs.get("scaling"), kwargs.get("dropout") and module.training
    additive = attention_mask is not None and attention_mask.dtype != torch.bool  # a gate's, a bias: not only hiding
    plain, gpu = not (front or dropping or additive), _on_gpu(query)
    rows = None if gpu and (not plain or kwargs.get("softcap")) else packed_rows(position_ids, query)
    if rows is not None and gpu and _serves(query, key, value):
        return attend(query[0], key[0], value[0], rows, scaling, sliding_window)[None], None
    if rows is not None and not gpu and plain and (sliding_window is None or rows.longest <= sliding_window):
        scale = query.size(-1) ** -0.5 if scaling is None else scaling
        return causal_rows(query[0], key[0], value[0], rows.edges, scale)[None], None
    if gpu or rows is None or len(rows.edges) <= 2:
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        kwargs["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    out = []
    for begin, end in pairwise(rows.edges):
        keys, values = key[:, :, front + begin : front + end], value[:, :, front + begin : front + end]
        mask = None
        if front or (sliding_window is not None and end - begin > sliding_window) or additive:
            assert attention_mask is not None  # more than one row
            own = attention_mask[..., begin:end, :]
            mask = torch.cat([own[..., :front], own[..., front + begin : front + end]], -1)
            keys, values = torch.cat([key[:, :, :front], keys], 2), torch.cat([value[:, :, :front], values], 2)
        kwargs["is_causal"] = mask is None
        out.append(sdpa_attention_forward(module, query[:, :, begin:end], keys, values, mask, **kwargs)[0])
    return torch.cat(out, 1), None


def causal_rows(query: Tensor, key: Tensor, value: Tensor, edges: Sequence[int], scale: float) -> Tensor:
    """softmax(q k^T scale) v within each row: [heads, T, D], [key heads, T, D] twice -> [T, heads, D]."""
    # As sdpa's kernel it recomputes probabilities in the backward pass (Dao et al. 2022, arXiv 2205.14135), in blocks
    # that suit a CPU's matrix products. All is float32: in bfloat16 the scores of Qwen2, some hundreds, would be off by
    # whole numbers, and oneDNN would compile and keep a kernel for each length of a row, which MKL does not.
    # As autocast does for sdpa: rotated queries may be wider than the values.
    query, key, value = (x.to(autocast_type(x, x.dtype)) for x in (query, key, value))
    return _CausalRows.apply(query, key, value, tuple(edges), scale)  # type: ignore[no-any-return, no-untyped-call]


class _CausalRows(torch.autograd.Function):
    """Queries that share a key head stand together, token by token: [key heads, T * group, D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, edges: tuple[int, ...], scale: float) -> Tensor:
        heads, tokens, _ = query.shape
        few, group = len(key), heads // len(key)
        out = query.new_empty(tokens, heads, value.size(-1))
        into = out.view(tokens, few, group, -1)
        with torch.autocast(query.device.type, enabled=False):
            queries, keys, values, future = _stacked(query, few, scale), key.float(), value.float(), _future(query)
            for begin, start, end in _blocks(heads, edges):
                own = slice(start * group, end * group)
                probabilities = _probabilities(queries[:, own], keys[:, begin:end], future, group)
                mixed = torch.bmm(probabilities, values[:, begin:end])  # [key heads, n * group, D]
                into[start:end] = mixed.view(few, end - start, group, -1).transpose(0, 1)
        ctx.save_for_backward(query, key, value)
        ctx.how = edges, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        query, key, value = ctx.saved_tensors
        edges, scale = ctx.how
        heads, tokens, width = query.shape
        few, group = len(key), heads // len(key)
        with torch.autocast(query.device.type, enabled=False):
            queries, keys, values, future = _stacked(query, few, scale), key.float(), value.float(), _future(query)
            grad = _stacked(grad_output.transpose(0, 1), few)
            grad_queries = torch.empty_like(queries)
            grad_key, grad_value = torch.zeros_like(keys), torch.zeros_like(values)
            for begin, start, end in _blocks(heads, edges):
                own, seen = slice(start * group, end * group), slice(begin, end)
                probabilities = _probabilities(queries[:, own], keys[:, seen], future, group)
                grad_value[:, seen].baddbmm_(probabilities.transpose(1, 2), grad[:, own])
                grad_probabilities = torch.bmm(grad[:, own], values[:, seen].transpose(1, 2))
                grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities, -1, torch.float32)
                grad_queries[:, own] = torch.bmm(grad_scores, keys[:, seen])
                grad_key[:, seen].baddbmm_(grad_scores.transpose(1, 2), queries[:, own])
        grad_query = grad_queries.mul_(scale).view(few, tokens, group, width).transpose(1, 2).reshape(query.shape)
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _stacked(query: Tensor, few: int, scale: float = 1.0) -> Tensor:
    """[heads, T, D] -> [few, T * group, D], times `scale`, in float32."""
    heads, tokens, width = query.shape
    out = query.new_empty(few, tokens, heads // few, width, dtype=torch.float32)
    out.copy_(query.reshape(few, heads // few, tokens, width).transpose(1, 2))
    return out.mul_(scale).view(few, -1, width)


def _blocks(heads: int, edges: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(begin of the row, begin and end of some of its queries), block by block."""
    for begin, last in pairwise(edges):
        size = min(BLOCK, max(16, BLOCK_BYTES // (4 * heads * (last - begin))))
        for start in range(begin, last, size):
            yield begin, start, min(start + size, last)


def _future(query: Tensor) -> Tensor:
    """[BLOCK, 1, BLOCK]: -inf where a key comes after the query."""
    return torch.full((BLOCK, BLOCK), float("-inf"), device=query.device).triu_(1)[:, None]


def _probabilities(queries: Tensor, keys: Tensor, future: Tensor, group: int) -> Tensor:
    """Probabilities: [key heads, n * group, D], [key heads, before + n, D] -> [key heads, n * group, before + n]."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    n = queries.size(1) // group
    scores.view(len(keys), n, group, -1)[..., -n:] += future[:n, :, :n]
    return scores.softmax(-1)


def _on_gpu(query: Tensor) -> bool:
    return query.device.type == "cuda"


def attend(q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float | None, window: int | None) -> Tensor:
    """Queries [heads, T, D], keys and values [key heads, T, D] -> [T, heads, D], each row by itself and causal.

    A token sees `window` tokens, itself among them; None means all before it. A `scale` of None is D ** -0.5.
    """
    q, k, v = (x.transpose(0, 1).to(autocast_type(q, q.dtype)) for x in (q, k, v))
    before = -1 if window is None or window >= rows.longest else window - 1
    return kernel(q, k, v, rows, scale, (before, 0))


def kernel(q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float | None, window: tuple[int, int]) -> Tensor:
    """The kernel of torch, for [T, heads, D] and twice [T, key heads, D]. It has no dropout and no other mask."""
    from torch.nn.attention.varlen import varlen_attn

    places, options = (rows.starts, rows.starts, rows.longest, rows.longest), {"scale": scale, "window_size": window}
    return varlen_attn(q, k, v, *places, enable_gqa=q.size(1) != k.size(1), **options)  # type: ignore[arg-type, return-value]


def _serves(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether torch's kernel works for tensors like these, [1, heads, T, D]; it takes half precision."""
    dtype = autocast_type(query, query.dtype)
    if dtype not in (torch.bfloat16, torch.float16) or value.size(-1) != query.size(-1):
        return False
    return _proved(dtype, query.device, query.size(1), key.size(1), query.size(-1))


@lru_cache(maxsize=32)
def _proved(dtype: torch.dtype, device: torch.device, heads: int, few: int, width: int) -> bool:
    """Whether values and gradients, also with a window, are sdpa's to the rounding of `dtype`."""
    # Also asked while a run is planned, on tensors without numbers.
    with _disable_current_modes(), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        try:
            return all(_agrees(dtype, device, heads, few, width, window) for window in (None, 20))
        except (RuntimeError, ImportError, TypeError, ValueError):
            return False


def _agrees(dtype: torch.dtype, device: torch.device, heads: int, few: int, width: int, window: int | None) -> bool:
    edges, draw = [0, 37, 128], torch.Generator(device).manual_seed(0)
    drawn = (torch.randn(some, edges[-1], width, generator=draw, device=device) for some in (heads, few, few))
    given = [x.to(dtype).requires_grad_() for x in drawn]
    true = [x.detach().float().requires_grad_() for x in given]
    first = torch.arange(edges[-1], device=device) < edges[1]
    seen = (first[:, None] == first).tril().triu(-edges[-1] if window is None else 1 - window)
    q, k, v = (x[None] for x in true)
    want = scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1)
    grad = torch.randn(want.shape, generator=draw, device=device)
    rows = PackedRows(edges, torch.tensor(edges, dtype=torch.int32, device=device), edges[2] - edges[1])
    got = attend(given[0], given[1], given[2], rows, None, window)
    ours, right = torch.autograd.grad(got, given, grad.to(dtype)), torch.autograd.grad(want, true, grad)
    pairs = zip((got, *ours), (want, *right), strict=True)
    return all(float((one.float() - other).norm()) <= 0.02 * float(other.norm()) for one, other in pairs)


@contextmanager
def row_by_row(model: nn.Module, *, apart: bool = False) -> Iterator[None]:
    """A context in which attention is computed row by row where the model uses sdpa, `apart` from compiled code."""
    # A model with Flash Attention (attn_implementation) keeps it: that finds rows by their positions as well.
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if getattr(getattr(base, "config", None), "_attn_implementation", "") != "sdpa":
        yield
        return
    opaque: Any = torch.compiler.disable
    AttentionInterface.register(NAME, opaque(packed_attention) if apart else packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    base.set_attn_implementation(NAME)
    try:
        yield
    finally:
        base.set_attn_implementation("sdpa")
