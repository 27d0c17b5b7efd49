"""A lane steps the rows of one model: their prompts first, piece by piece, then a token for each at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.rendering.row import even_length
from luthier.serving.engine.kv_cache import NAME, SlotCache, visible
from luthier.serving.engine.multi_adapter import Mixer

CHUNK = 512
"""Tokens of prompts in one step: a long prompt must not keep the answers of others waiting."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a row of a variant begins with; nothing for most methods."""

    adapter: int = 0
    """Its number in the lane's mixer; 0 is the base."""
    embeds: Tensor | None = None
    """Virtual tokens in front of the text, [length, hidden] (prompt and P-tuning)."""
    keys: list[Tensor] = field(default_factory=list)
    """Trained keys of each layer, [heads, length, head size] (prefix tuning, P-tuning v2)."""
    values: list[Tensor] = field(default_factory=list)

    @property
    def front(self) -> int:
        """Places of the cache taken by trained keys, which have no positions."""
        return self.keys[0].size(1) if self.keys else 0

    @property
    def virtual(self) -> int:
        """Positions taken by virtual tokens."""
        return 0 if self.embeds is None else len(self.embeds)


@dataclass(slots=True, eq=False)
class Row:
    """A row in a lane."""

    ids: list[int]
    """The prompt."""
    start: Start
    done: int = 0
    """Tokens in the cache that have a position: virtual ones, then text."""
    token: int = 0
    """The token it said last, which the next step takes in."""
    cache: Any = None
    """Where each row has a cache of its own."""

    @property
    def whole(self) -> int:
        """Tokens of the prompt with the virtual ones."""
        return self.start.virtual + len(self.ids)

    @property
    def kept(self) -> int:
        """Places taken in the cache."""
        return self.start.front + self.done


class Lane:
    """Rows over one model: those that are ready stand before those whose prompts are still being read."""

    chunk = CHUNK

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.eval()
        self.device = next(model.parameters()).device
        self.rows: list[Row] = []
        self.count = 0
        """Rows that are ready."""

    @property
    def ready(self) -> list[Row]:
        """Rows that get a token in each step."""
        return self.rows[: self.count]

    def take(self, row: Row) -> None:
        """Let a row in."""
        self.rows.append(row)

    def drop(self, row: Row) -> None:
        """Let a row out: the last one of its kind takes its place."""
        place = self.rows.index(row)
        if place < self.count:
            self.count -= 1
            self._move(self.count, place)
            place = self.count
        self._move(len(self.rows) - 1, place)
        self.rows.pop()

    def clear(self) -> None:
        """Let all out, in whatever state they are."""
        self.rows, self.count = [], 0

    def feed(self) -> list[tuple[Row, Tensor]]:
        """Read up to CHUNK tokens of prompts: the rows that are ready now, with their first logits [vocabulary]."""
        raise NotImplementedError

    def step(self) -> Tensor:
        """Each ready row takes in its token: logits [rows, vocabulary] of the next ones."""
        raise NotImplementedError

    def _move(self, source: int, target: int) -> None:
        self.rows[target] = self.rows[source]

    def _exchange(self, one: int, other: int) -> None:
        self.rows[one], self.rows[other] = self.rows[other], self.rows[one]

    def _is_ready(self, row: Row) -> None:
        self._exchange(self.rows.index(row), self.count)
        self.count += 1

    def _entered(self, row: Row, begin: int, end: int) -> dict[str, Tensor]:
        """Tokens `begin` to `end` of a prompt, virtual ones in front counted: ids, or embeddings where it has such."""
        virtual = row.start.virtual
        text = torch.tensor([row.ids[max(0, begin - virtual) : max(0, end - virtual)]], device=self.device).long()
        if row.start.embeds is None:
            return {"input_ids": text}
        real = self.model.get_input_embeddings()(text)
        return {"inputs_embeds": torch.cat([row.start.embeds[None, begin:end].to(real), real], 1)}


class SlotLane(Lane):
    """All rows of a model in one cache and one call; with a mixer each has an adapter of its own."""

    def __init__(self, model: nn.Module, mixer: Mixer | None = None) -> None:
        super().__init__(model)
        self.model.set_attn_implementation(NAME)
        self.mixer = mixer
        self.cache = SlotCache(self.model.config.get_text_config().num_hidden_layers)

    def take(self, row: Row) -> None:
        super().take(row)
        if row.start.keys:
            self.cache.put(len(self.rows) - 1, row.start.keys, row.start.values)

    def drop(self, row: Row) -> None:
        super().drop(row)
        if not self.rows:
            self.cache.clear()

    def clear(self) -> None:
        super().clear()
        self.cache.clear()

    def feed(self) -> list[tuple[Row, Tensor]]:
        group = self._group()
        if not group:
            return []
        longest = max(row.whole - row.done for row in group)
        # For each number of tokens oneDNN compiles kernels and keeps them: a server would grow with each new length.
        size = min(even_length(longest, self.chunk), max(1, self.chunk // len(group)))
        if group[0].start.embeds is not None:
            entered = self._entered(group[0], group[0].done, group[0].done + size)
            entered = {name: F.pad(own, (0, 0, 0, size - own.size(1))) for name, own in entered.items()}
        else:
            texts = [row.ids[row.done : row.done + size] for row in group]
            entered = {"input_ids": torch.tensor([ids + [0] * (size - len(ids)) for ids in texts], device=self.device)}
        # Where each prompt ends, if it does in this piece; logits are made for these places alone.
        ends = {row: row.whole - row.done - 1 for row in group if row.whole - row.done <= size}
        wanted = sorted({*ends.values()}) or [size - 1]
        logits = self._forward(group, self.count, size, entered, torch.tensor(wanted, device=self.device))
        for row in group:
            row.done = min(row.whole, row.done + size)
        made = [(row, logits[group.index(row), wanted.index(end)]) for row, end in ends.items()]
        for row in ends:
            self._is_ready(row)
        return made

    def step(self) -> Tensor:
        rows = self.ready
        entered = {"input_ids": torch.tensor([[row.token] for row in rows], device=self.device)}
        logits = self._forward(rows, 0, 1, entered, 1)
        for row in rows:
            row.done += 1
        return logits[:, -1]

    def _move(self, source: int, target: int) -> None:
        self.cache.move(source, target, self.rows[source].kept)
        super()._move(source, target)

    def _exchange(self, one: int, other: int) -> None:
        if one == other:
            return
        spare = len(self.rows)
        self.cache.ensure(spare + 1, 1)
        self.cache.move(other, spare, self.rows[other].kept)
        self.cache.move(one, other, self.rows[one].kept)
        self.cache.move(spare, one, self.rows[other].kept)
        super()._exchange(one, other)

    def _group(self) -> list[Row]:
        """New rows whose prompts are read together: the first, and those behind it that fit a chunk beside it.

        A power of two, so that all tokens together are as even as those of one row.
        """
        group: list[Row] = []
        for row in self.rows[self.count :]:
            if group and (row.start.embeds is not None or group[0].start.embeds is not None):
                break
            longest = max(each.whole - each.done for each in [*group, row])
            if group and even_length(longest, self.chunk) * (len(group) + 1) > self.chunk:
                break
            group.append(row)
        return group[: 1 << len(group).bit_length() - 1] if group else group

    def _forward(
        self, rows: Sequence[Row], first: int, size: int, entered: dict[str, Tensor], keep: int | Tensor
    ) -> Tensor:
        """Logits [rows, kept, vocabulary] of the next `size` tokens; behind the end of a prompt they mean nothing."""
        starts = [row.kept for row in rows]
        places = torch.tensor([[row.done] for row in rows], device=self.device) + torch.arange(size, device=self.device)
        if size > 1:  # behind the end of a prompt are positions that the model may not have
            places = places.minimum(torch.tensor([[row.whole - 1] for row in rows], device=self.device))
        if self.mixer is not None:
            self.mixer.use([row.start.adapter for row in rows])
        self.cache.step(first, starts, size, self.device)
        made = self.model(
            **entered,
            attention_mask=visible(starts, size, self.device),
            past_key_values=self.cache,
            use_cache=True,
            position_ids=places,
            logits_to_keep=keep,
        )
        logits: Tensor = made.logits
        return logits


class PlainLane(Lane):
    """Row by row, each with the model's own kind of cache: for models that slots do not serve."""

    def feed(self) -> list[tuple[Row, Tensor]]:
        if self.count == len(self.rows):
            return []
        row = self.rows[self.count]
        end = min(row.whole, row.done + self.chunk)
        logits = self._forward(row, end, self._entered(row, row.done, end))
        if row.done < row.whole:
            return []
        self._is_ready(row)
        return [(row, logits)]

    def step(self) -> Tensor:
        tokens = [{"input_ids": torch.tensor([[row.token]], device=self.device)} for row in self.ready]
        return torch.stack([self._forward(row, row.done + 1, own) for row, own in zip(self.ready, tokens, strict=True)])

    def _forward(self, row: Row, end: int, entered: dict[str, Tensor]) -> Tensor:
        mask = torch.ones(1, end, dtype=torch.long, device=self.device)
        made = self.model(**entered, attention_mask=mask, past_key_values=row.cache, use_cache=True)
        row.cache, row.done = made.past_key_values, end
        logits: Tensor = made.logits[0, -1]
        return logits
