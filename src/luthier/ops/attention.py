"""Attention over packed rows, row by row: what crosses from one row to another is not computed and then masked away.

transformers' sdpa takes a sequence of packed rows with a [T, T] mask, so its cost grows with the square of the whole
sequence. Here each row is computed by itself: on a CPU in one function for all rows where the causal triangle is all
that a mask has to say, and by a call of sdpa a row else; on a GPU by torch's kernel for many lengths, where that
serves. Registered with transformers as `luthier_packed`; everything but packed rows goes to sdpa as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from luthier.ops import varlen

NAME = "luthier_packed"
EDGES = "luthier_edges"
BLOCK_BYTES = 2**21
"""Bytes of the scores made at a time: they should stay in a processor's cache."""


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    position_ids: Tensor | None = None, sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Queries [1, heads, T, D], keys and values [1, key heads, P + T, D] -> [1, T, heads, D].

    Positions that begin anew part the rows. Keys in front of the queries (a trained prefix) are seen by every row.
    """
    front = key.size(2) - query.size(2)
    if _on_gpu(query):
        plain = not (front or kwargs.get("softcap") or (kwargs.get("dropout") and module.training))
        rows = varlen.rows_of(position_ids, query) if plain and not _additive(attention_mask) else None
        if rows is not None and varlen.serves(query, key, value):
            scaling = kwargs.get("scaling")
            return varlen.attend(query[0], key[0], value[0], rows, scaling, sliding_window)[None], None
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **kwargs
        )
    edges = _edges(position_ids, query)
    longest = max((end - begin for begin, end in pairwise(edges)), default=0)
    windowed = sliding_window is not None and longest > sliding_window
    dropping = kwargs.get("dropout") and module.training
    if edges and not (front or windowed or dropping or _additive(attention_mask)):
        scaling = kwargs.get("scaling")
        scale = query.size(-1) ** -0.5 if scaling is None else scaling
        return causal_rows(query[0], key[0], value[0], edges, scale)[None], None
    if len(edges) <= 2:
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **kwargs
        )
    made = []
    for begin, end in pairwise(edges):
        keys, values = key[:, :, front + begin : front + end], value[:, :, front + begin : front + end]
        mask = None
        if front or (sliding_window is not None and end - begin > sliding_window) or _additive(attention_mask):
            assert attention_mask is not None  # more than one row
            own = attention_mask[..., begin:end, :]
            mask = torch.cat([own[..., :front], own[..., front + begin : front + end]], -1)
            keys, values = torch.cat([key[:, :, :front], keys], 2), torch.cat([value[:, :, :front], values], 2)
        kwargs["is_causal"] = mask is None
        made.append(sdpa_attention_forward(module, query[:, :, begin:end], keys, values, mask, **kwargs)[0])
    return torch.cat(made, 1), None


def causal_rows(query: Tensor, key: Tensor, value: Tensor, edges: Sequence[int], scale: float) -> Tensor:
    """softmax(q k^T scale) v within each row: [heads, T, D], [key heads, T, D] twice -> [T, heads, D].

    As sdpa's kernel it keeps no probabilities and makes them anew in the backward pass (Dao et al. 2022, arXiv
    2205.14135); it differs in the blocks, some queries of all heads against all keys before them, which suit a CPU's
    matrix products. All is float32: in bfloat16 the scores of Qwen2, some hundreds, would be off by whole numbers, and
    oneDNN would compile and keep a kernel for each length of a row, which MKL does not.
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # as it does for sdpa: rotated queries may be wider than the values
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    made: Tensor = _CausalRows.apply(query, key, value, tuple(edges), scale)  # type: ignore[no-untyped-call]
    return made


class _CausalRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, edges: tuple[int, ...], scale: float) -> Tensor:
        heads, tokens, _ = query.shape
        made = query.new_empty(tokens, heads, value.size(-1))
        log_sums = query.new_empty(heads, tokens, dtype=torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            for begin, start, end, keys in _blocks(query, key, edges):
                scores = _scores(query[:, start:end], keys, start - begin, scale)
                top = scores.amax(-1, keepdim=True)
                total = scores.sub_(top).exp_().sum(-1, keepdim=True)
                log_sums[:, start:end] = (top + total.log()).view(heads, -1)
                mixed = torch.bmm(scores.div_(total), value[:, begin:end].float())  # [key heads, group * n, D]
                made[start:end] = mixed.view(heads, end - start, -1).transpose(0, 1)
        ctx.save_for_backward(query, key, value, made, log_sums)
        ctx.how = edges, scale
        return made

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        query, key, value, made, log_sums = ctx.saved_tensors
        edges, scale = ctx.how
        few = len(key)
        to_query, to_key, to_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        inner = (upstream.float() * made.float()).sum(-1).t()  # [heads, T]
        grown_key = grown_value = key.new_empty(0)
        with torch.autocast(query.device.type, enabled=False):
            for begin, start, end, keys in _blocks(query, key, edges):
                size = end - begin
                if start == begin:
                    row_end = next(edge for edge in edges if edge > begin)
                    grown_key = key.new_zeros(few, row_end - begin, key.size(-1), dtype=torch.float32)
                    grown_value = value.new_zeros(few, row_end - begin, value.size(-1), dtype=torch.float32)
                queries, values = query[:, start:end], value[:, begin:end].float()
                shares = _scores(queries, keys, start - begin, scale)
                shares.sub_(log_sums[:, start:end].reshape(few, -1, 1)).exp_()
                # [n, heads, D] -> [key heads, group * n, D]
                slope = upstream[start:end].transpose(0, 1).float().reshape(few, -1, value.size(-1))
                grown_value[:, :size].baddbmm_(shares.transpose(1, 2), slope)
                to_scores = torch.bmm(slope, values.transpose(1, 2))
                to_scores.sub_(inner[:, start:end].reshape(few, -1, 1)).mul_(shares).mul_(scale)
                to_query[:, start:end] = torch.bmm(to_scores, keys).view(queries.shape)
                asked = queries.float().reshape(few, -1, query.size(-1))
                grown_key[:, :size].baddbmm_(to_scores.transpose(1, 2), asked)
                if end in edges:
                    to_key[:, begin:end], to_value[:, begin:end] = grown_key, grown_value
        return to_query, to_key, to_value, None, None


def _blocks(query: Tensor, key: Tensor, edges: Sequence[int]) -> Iterator[tuple[int, int, int, Tensor]]:
    """(begin of the row, begin and end of some of its queries, its keys up to there in float32), block by block."""
    heads = len(query)
    for begin, last in pairwise(edges):
        keys = key[:, begin:last].float()
        size = min(128, max(16, BLOCK_BYTES // (4 * heads * (last - begin))))
        for start in range(begin, last, size):
            end = min(start + size, last)
            yield begin, start, end, keys[:, : end - begin]


def _scores(query: Tensor, keys: Tensor, before: int, scale: float) -> Tensor:
    """[heads, n, D], float32 [key heads, before + n, D] -> [key heads, group * n, before + n], the future at -inf."""
    heads, n, width = query.shape
    few = len(keys)
    asked = query.float().reshape(few, -1, width)
    scores = torch.bmm(asked, keys.transpose(1, 2)).mul_(scale)
    future = torch.full((n, n), float("-inf"), device=query.device).triu_(1)
    scores.view(few, heads // few, n, -1)[..., before:] += future
    return scores


def _edges(position_ids: Tensor | None, query: Tensor) -> list[int]:
    """Where rows begin, and the end of the last; nothing where the batch is not one sequence of packed rows.

    Kept with the positions, which all layers are given.
    """
    if position_ids is None or query.size(0) != 1 or position_ids.shape != (1, query.size(2)):
        return []
    known: list[int] | None = getattr(position_ids, EDGES, None)
    if known is None:
        begins: list[int] = (position_ids[0] == 0).nonzero()[:, 0].tolist()
        known = [*begins, query.size(2)] if begins[:1] == [0] else []
        setattr(position_ids, EDGES, known)
    return known


def _on_gpu(query: Tensor) -> bool:
    return query.device.type == "cuda"


def _additive(mask: Tensor | None) -> bool:
    """Does a mask add numbers (a gate's, a bias) and not only hide?"""
    return mask is not None and mask.dtype != torch.bool


@contextmanager
def row_by_row(model: nn.Module, *, apart: bool = False) -> Iterator[None]:
    """In here attention of packed rows is computed row by row, where the model uses sdpa; `apart` from compiled code.

    A model with Flash Attention of its own (attn_implementation) keeps it: that reads rows off their positions as well.
    """
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
