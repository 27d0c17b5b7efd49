"""A KV cache whose rows have lengths of their own, for batches that rows join and leave at any step.

Each row starts at position 0 of its own index, and a step reads the rows as one slice; the mask says how long they are.
In a step of one token a row, the heads that share a key head form one block of queries. Registered with transformers
under NAME.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import sdpa_mask

NAME = "luthier_rows"
STEP = 128  # The capacity of a row grows by a multiple of this many tokens


class RowCacheLayer(CacheLayerMixin):
    """Keys and values of one layer: [rows, heads, capacity, head size]."""

    is_sliding = False

    def __init__(self, owner: "RowCache") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, capacity, both = self.owner.rows, self.owner.capacity, (key_states, value_states)
        self.keys, self.values = (like.new_zeros(rows, like.size(1), capacity, like.size(3)) for like in both)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [rows, heads, T, head size] to the rows of this step and return all that they have."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        first, starts, longest = self.owner.step
        kept = [each[first : first + len(starts)] for each in (self.keys, self.values)]
        for own, new in zip(kept, (key_states, value_states), strict=True):
            own[self.owner.indices, :, self.owner.positions] = new.transpose(1, 2)
        return kept[0][:, :, :longest], kept[1][:, :, :longest]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.step[2], 0

    def get_seq_length(self) -> int:
        return max(self.owner.step[1])

    def get_max_length(self) -> int:
        return -1


class RowCache(Cache):
    """A cache for transformers models. Call `prepare` before each forward pass to say which rows it is about."""

    def __init__(self, layers: int) -> None:
        self.rows, self.capacity = 1, STEP
        self.step: tuple[int, list[int], int] = (0, [0], 0)
        """(first row, tokens that each row has already, length of the longest row including new tokens)."""
        self.indices = self.positions = torch.zeros(1, 1, dtype=torch.long)
        """Index within the step [rows, 1], and position of each new token [rows, T]; on the device."""
        self.own = [RowCacheLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.own))

    def prepare(self, first: int, starts: list[int], new: int, device: torch.device) -> Tensor:
        """Say that the next call appends `new` tokens to the rows from index `first` on, which have `starts` tokens.

        Returns its mask [rows, 1, new, longest]: True where a new token attends to a cached one (up to itself).
        """
        longest = max(starts) + new
        self.reserve(first + len(starts), longest)
        self.step = first, starts, longest
        self.indices = torch.arange(len(starts), device=device)[:, None]
        self.positions = torch.tensor(starts, device=device)[:, None] + torch.arange(new, device=device)
        return (torch.arange(longest, device=device) <= self.positions[..., None])[:, None]

    def reserve(self, rows: int, capacity: int) -> None:
        """Grow to at least this many rows of this many tokens, keeping the content."""
        if rows <= self.rows and capacity <= self.capacity:
            return
        while self.rows < rows:
            self.rows *= 2
        if capacity > self.capacity:
            self.capacity = -(-max(capacity, self.capacity * 5 // 4) // STEP) * STEP
        for layer in self.own:
            if layer.keys is not None and layer.values is not None:
                old = layer.keys, layer.values
                layer.lazy_initialization(*old)
                for new, kept in zip((layer.keys, layer.values), old, strict=True):
                    new[: len(kept), :, : kept.size(2)] = kept

    def move(self, source: int, target: int, length: int, more: Sequence[int] = ()) -> None:
        """Copy a row's first `length` tokens to another index, and behind them those at the indices `more`.

        A row without tokens may not be in the cache yet.
        """
        places = list(more) if [*more] != [*range(length, length + len(more))] else []
        length += 0 if places else len(more)
        for kept in self._tensors() if length else ():
            if source != target:
                kept[target, :, :length] = kept[source, :, :length]
            if places:
                kept[target, :, length : length + len(places)] = kept[source][:, places]

    def repeat(self, rows: int, length: int) -> None:
        """Let the first `rows` rows begin with the first `length` tokens of row 0."""
        self.reserve(rows, length)
        for kept in self._tensors():
            kept[1:rows, :, :length] = kept[0, :, :length]

    def bytes_per_token(self) -> int:
        """Bytes of keys and values for one token of a row."""
        return sum(kept.nbytes for kept in self._tensors()) // (self.rows * self.capacity)

    def _tensors(self) -> list[Tensor]:
        return [each for layer in self.own for each in (layer.keys, layer.values) if each is not None]


def row_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Queries [rows, heads, T, D], keys and values [rows, key heads, longest, D] -> [rows, T, heads, D].

    NotImplementedError if a model needs more than masking (Gemma 2 caps its scores).
    """
    mask, scale, window = attention_mask, options.get("scaling"), options.get("sliding_window")
    if options.get("softcap") is not None or options.get("s_aux") is not None or mask is None:
        raise NotImplementedError("attention with capped scores or sinks")
    if window is not None and key.size(2) > window:
        hidden = mask.sum(-1, keepdim=True) - window
        mask = mask & (torch.arange(key.size(2), device=key.device) >= hidden)
    rows, heads, tokens, width = query.shape
    groups = key.size(1)
    if rows == 1 and tokens > 1 and key.size(2) == tokens and window is None:
        grouped = groups != heads
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        return output.transpose(1, 2), None
    if tokens > 1:
        grouped = groups != heads and query.device.type == "cpu"
        if groups != heads and not grouped:  # a GPU's kernels that take a mask know no groups
            key, value = (each.repeat_interleave(heads // groups, 1) for each in (key, value))
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)
        return output.transpose(1, 2), None
    query = query.reshape(rows, groups, -1, width)  # [rows, key heads, heads that share them, D]
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return output.reshape(rows, heads, tokens, width).transpose(1, 2), None


AttentionInterface.register(NAME, row_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
