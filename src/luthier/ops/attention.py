"""Attention over packed rows, row by row: what crosses from one row to another is not computed and then masked away.

transformers' sdpa takes a sequence of packed rows with a [T, T] mask, so its cost grows with the square of the whole
sequence. Here each row is a call of its own, with the kernel's own causal triangle where the mask has nothing else
to say. Registered with transformers as `luthier_packed`; everything but packed rows goes to sdpa as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "luthier_packed"


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    position_ids: Tensor | None = None, sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Queries [1, heads, T, D], keys and values [1, key heads, P + T, D] -> [1, T, heads, D].

    Positions that begin anew part the rows. Keys in front of the queries (a trained prefix) are seen by every row.
    """
    edges = _edges(position_ids, query)
    if len(edges) <= 2:
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **kwargs
        )
    front = key.size(2) - query.size(2)
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


def _edges(position_ids: Tensor | None, query: Tensor) -> list[int]:
    """Where rows begin, and the end of the last; nothing where the batch is not one sequence of packed rows."""
    if position_ids is None or query.size(0) != 1 or position_ids.shape != (1, query.size(2)):
        return []
    begins: list[int] = (position_ids[0] == 0).nonzero()[:, 0].tolist()
    return [*begins, query.size(2)] if begins[:1] == [0] else []


def _additive(mask: Tensor | None) -> bool:
    """Does a mask add numbers (a gate's, a bias) and not only hide?"""
    return mask is not None and mask.dtype != torch.bool


@contextmanager
def row_by_row(model: nn.Module) -> Iterator[None]:
    """In here attention of packed rows is computed row by row, where the model uses sdpa on a CPU.

    Else nothing changes: a GPU would wait for the edges in every layer, and has kernels for rows of different lengths.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if (
        getattr(getattr(base, "config", None), "_attn_implementation", "") != "sdpa"
        or next(model.parameters()).device.type != "cpu"
    ):
        yield
        return
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    base.set_attn_implementation(NAME)
    try:
        yield
    finally:
        base.set_attn_implementation("sdpa")
