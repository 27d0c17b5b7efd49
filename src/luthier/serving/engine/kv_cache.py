"""Keys and values of many rows side by side, each of its own length: a cache for rows that come and go.

transformers' caches pad rows to one length, and to let one in or out copies all of them. Here each row has a place of
its own and begins there at 0, so nothing is padded on the left, a row that ends costs one copy (the last one moves into
its place), and a step reads the rows as one slice. The mask says how far each has come. Attention takes the heads that
share keys as one block of queries, so keys are not repeated for them.

Registered with transformers as `luthier_slots`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import sdpa_mask

NAME = "luthier_slots"
STEP = 128
"""Tokens by which a row's place grows at least."""


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer: [places, heads, room, head size]."""

    is_sliding = False

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._empty(key_states), self._empty(value_states)
        self.is_initialized = True

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.owner.places, like.size(1), self.owner.room, like.size(3))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write [rows, heads, T, head size] behind what the rows of this step have, and return all they have."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        first, starts, longest = self.owner.now
        rows = slice(first, first + len(starts))
        keys, values = self.keys[rows], self.values[rows]
        if key_states.size(2) == 1:
            each = torch.arange(len(starts), device=key_states.device)
            keys[each, :, self.owner.at] = key_states[:, :, 0]
            values[each, :, self.owner.at] = value_states[:, :, 0]
        else:
            for row, start in enumerate(starts):
                keys[row, :, start : start + key_states.size(2)] = key_states[row]
                values[row, :, start : start + key_states.size(2)] = value_states[row]
        return keys[:, :, :longest], values[:, :, :longest]

    def grow(self) -> None:
        """Take the owner's size, keeping what is there."""
        if not self.is_initialized:
            return
        assert self.keys is not None and self.values is not None
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = self._empty(old)
            places, room = min(len(old), len(new)), min(old.size(2), new.size(2))
            new[:places, :, :room] = old[:places, :, :room]
            setattr(self, name, new)

    def put(self, place: int, keys: Tensor, values: Tensor) -> None:
        """Begin a row with these, [heads, length, head size]."""
        if not self.is_initialized:
            self.lazy_initialization(keys[None], values[None])
        assert self.keys is not None and self.values is not None
        self.keys[place, :, : keys.size(1)] = keys
        self.values[place, :, : values.size(1)] = values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy `length` tokens of one place to another."""
        if self.keys is not None and self.values is not None:
            for kept in (self.keys, self.values):
                kept[target, :, :length] = kept[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.now[2], 0

    def get_seq_length(self) -> int:
        return max(self.owner.now[1])

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """A cache for transformers' models. Say with `step` which rows a call is about."""

    def __init__(self, layers: int) -> None:
        self.places, self.room = 1, STEP
        self.now: tuple[int, list[int], int] = (0, [0], 0)
        """(first place, tokens each row has already, tokens of the longest with the new ones)."""
        self.at = torch.zeros(1, dtype=torch.long)
        """Where the new token of each row goes, on the device."""
        self.own = [SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.own))

    def step(self, first: int, starts: list[int], new: int, device: torch.device) -> None:
        """The next call adds `new` tokens to each of the rows from place `first` on, which have `starts` tokens."""
        longest = max(starts) + new
        self.ensure(first + len(starts), longest)
        self.now, self.at = (first, starts, longest), torch.tensor(starts, device=device)

    def ensure(self, places: int, room: int) -> None:
        """Make place for so many rows of so many tokens."""
        if places <= self.places and room <= self.room:
            return
        while self.places < places:
            self.places *= 2
        if room > self.room:
            self.room = -(-max(room, self.room * 5 // 4) // STEP) * STEP
        for layer in self.own:
            layer.grow()

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the row of one place to another; one without tokens may not be in the cache yet."""
        if source != target and length:
            for layer in self.own:
                layer.move(source, target, length)

    def put(self, place: int, keys: list[Tensor], values: list[Tensor]) -> None:
        """Begin a row with keys and values of its own, per layer [heads, length, head size] (a trained prefix)."""
        self.ensure(place + 1, keys[0].size(1))
        for layer, own_keys, own_values in zip(self.own, keys, values, strict=True):
            layer.put(place, own_keys, own_values)

    def clear(self) -> None:
        """Give the memory back; only where no row is kept."""
        self.places, self.room = 1, STEP
        for layer in self.own:
            layer.keys = layer.values = None
            layer.is_initialized = False


def visible(starts: list[int], new: int, device: torch.device) -> Tensor:
    """[rows, 1, new, longest]: True where a new token of a row sees one of the cache, which is up to itself."""
    places = torch.tensor(starts, device=device)[:, None] + torch.arange(new, device=device)
    seen = torch.arange(max(starts) + new, device=device)
    return (seen <= places[..., None])[:, None]


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Queries [rows, heads, T, D], keys and values [rows, key heads, longest, D] -> [rows, T, heads, D].

    NotImplementedError where a model asks for more than hiding keys (Gemma 2 caps its scores).
    """
    if softcap is not None or kwargs.get("s_aux") is not None or attention_mask is None:
        raise NotImplementedError("attention with capped scores or sinks")
    if sliding_window is not None and key.size(2) > sliding_window:
        hidden = attention_mask.sum(-1, keepdim=True) - sliding_window
        attention_mask = attention_mask & (torch.arange(key.size(2), device=key.device) >= hidden)
    rows, heads, tokens, width = query.shape
    few = key.size(1)
    if rows == 1 and tokens > 1 and key.size(2) == tokens and sliding_window is None:
        made = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=few != heads)
        return made.transpose(1, 2), None
    asked = query.reshape(rows, few, -1, width)  # [rows, key heads, heads that share them * T, D]
    mask = attention_mask
    if heads != few and tokens > 1:
        mask = mask[:, :, None].expand(-1, -1, heads // few, -1, -1).flatten(2, 3)
    made = F.scaled_dot_product_attention(asked, key, value, attn_mask=mask, scale=scaling)
    return made.reshape(rows, heads, tokens, width).transpose(1, 2), None


AttentionInterface.register(NAME, slot_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
