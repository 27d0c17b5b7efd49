"""Schedulers step the rows of one model: prompts are prefilled in chunks, then each step decodes one token per row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.kernels.kv_cache import NAME, RowCache
from luthier.rendering.row import even_length
from luthier.serving.engine.multi_adapter import MultiAdapter

CHUNK = 512  # Prompt tokens per step: a long prompt must not delay the answers of other requests


@dataclass(frozen=True, slots=True)
class PrefixState:
    """The state in which a model's rows start; empty for most methods."""

    adapter: int = 0  # Adapter number in the scheduler's MultiAdapter; 0 is the base
    embeds: Tensor | None = None  # Virtual tokens before the text, [length, hidden] (prompt tuning, P-tuning)
    keys: list[Tensor] = field(default_factory=list)  # Trained keys per layer, [heads, length, head size]
    values: list[Tensor] = field(default_factory=list)  # Trained values (both of prefix tuning, P-tuning v2)

    @property
    def virtual_tokens(self) -> int:
        """Position ids taken by virtual tokens."""
        return 0 if self.embeds is None else len(self.embeds)


@dataclass(slots=True, eq=False)
class RunningRow:
    """A sequence in a scheduler's batch."""

    ids: list[int]  # The prompt
    prefix: PrefixState
    done: int = 0  # Tokens in the cache that have a position id: virtual tokens, then text
    token: int = 0  # The last generated token, which is the input of the next step
    cache: Any = None  # The row's own cache, if each has one

    @property
    def total(self) -> int:
        """Prompt tokens including virtual ones."""
        return self.prefix.virtual_tokens + len(self.ids)

    @property
    def cached(self) -> int:
        """Cache positions in use, also by trained keys, which have no position ids."""
        return self.done + (self.prefix.keys[0].size(1) if self.prefix.keys else 0)


class Scheduler:
    """The rows of one model, computed one at a time, each with its own cache; ready (prefilled) rows come first."""

    chunk = CHUNK

    def __init__(self, model: nn.Module, attention: str) -> None:
        """`attention` is the implementation that transformers is to use."""
        self.model: Any = model.eval()
        model.set_attn_implementation(attention)  # type: ignore[operator]
        self.device = next(model.parameters()).device
        self.rows: list[RunningRow] = []
        self.count = 0  # Number of ready rows

    @property
    def ready(self) -> list[RunningRow]:
        """Rows that get a token in each step."""
        return self.rows[: self.count]

    def admit(self, row: RunningRow) -> None:
        self.rows.append(row)

    def evict(self, row: RunningRow) -> None:
        """Remove a row; the last one of its kind takes its index."""
        at, last = self.rows.index(row), len(self.rows) - 1
        holes = [at, self.count - 1, last] if at < self.count else [at, last]
        self.count -= at < self.count
        for target, source in pairwise(holes):
            self._move(source, target, self.rows[source])
            self.rows[target] = self.rows[source]
        self.rows.pop()
        if not self.rows:
            self.clear()

    def clear(self) -> None:
        """Remove all rows, whatever their state."""
        self.rows, self.count = [], 0

    def prefill(self) -> list[tuple[RunningRow, Tensor]]:
        """Read up to CHUNK prompt tokens; return the rows that are now ready with their first logits [vocabulary]."""
        if self.count == len(self.rows):
            return []
        row = self.rows[self.count]
        end = min(row.total, row.done + self.chunk)
        logits = self._forward_alone(row, end, self._inputs([row], end - row.done))
        if row.done < row.total:
            return []
        self._mark_ready(row)
        return [(row, logits)]

    def decode(self) -> Tensor:
        """Feed each ready row its last token; return logits [rows, vocabulary] of the next ones."""
        tokens = [{"input_ids": torch.tensor([[row.token]], device=self.device)} for row in self.ready]
        pairs = zip(self.ready, tokens, strict=True)
        return torch.stack([self._forward_alone(row, row.done + 1, own) for row, own in pairs])

    def _forward_alone(self, row: RunningRow, end: int, inputs: dict[str, Tensor]) -> Tensor:
        mask = torch.ones(1, end, dtype=torch.long, device=self.device)
        output = self.model(**inputs, attention_mask=mask, past_key_values=row.cache, use_cache=True)
        row.cache, row.done = output.past_key_values, end
        logits: Tensor = output.logits[0, -1]
        return logits

    def _move(self, source: int, target: int, row: RunningRow) -> None:
        """Copy what a scheduler keeps for a row by its index."""

    def _mark_ready(self, row: RunningRow) -> None:
        """Let a row and the first one that is not ready change places."""
        one, other, spare = self.rows.index(row), self.count, len(self.rows)
        if one != other:
            for source, target, moved in ((other, spare, other), (one, other, one), (spare, one, other)):
                self._move(source, target, self.rows[moved])
            self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
        self.count += 1

    def _inputs(self, rows: Sequence[RunningRow], size: int) -> dict[str, Tensor]:
        """Return the next `size` prompt tokens, with zeros after the end: ids, or embeddings of a row that has any."""
        starts = [row.done - row.prefix.virtual_tokens for row in rows]
        texts = [row.ids[max(0, at) : max(0, at + size)] for row, at in zip(rows, starts, strict=True)]
        if (embeds := rows[0].prefix.embeds) is None:
            texts = [text + [0] * (size - len(text)) for text in texts]
            return {"input_ids": torch.tensor(texts, device=self.device)}
        real = self.model.get_input_embeddings()(torch.tensor(texts, device=self.device).long())
        own = torch.cat([embeds[None, rows[0].done : rows[0].done + size].to(real), real], 1)
        return {"inputs_embeds": F.pad(own, (0, 0, 0, size - own.size(1)))}


class BatchScheduler(Scheduler):
    """All rows of a model in one cache and one call; with `adapters`, each row has its own adapter."""

    def __init__(self, model: nn.Module, adapters: MultiAdapter | None = None) -> None:
        super().__init__(model, NAME)
        self.adapters = adapters
        self.cache = RowCache(self.model.config.get_text_config().num_hidden_layers)

    def admit(self, row: RunningRow) -> None:
        super().admit(row)
        if row.prefix.keys:
            self.cache.prepare(len(self.rows) - 1, [0], row.prefix.keys[0].size(1), self.device)
            for layer, key, value in zip(self.cache.own, row.prefix.keys, row.prefix.values, strict=True):
                layer.update(key[None], value[None])

    def clear(self) -> None:
        super().clear()
        self.cache = RowCache(len(self.cache.own))  # frees the memory

    def prefill(self) -> list[tuple[RunningRow, Tensor]]:
        group: list[RunningRow] = []  # the first new row and those after it that fit into the chunk
        for row in self.rows[self.count :]:
            longest = max(each.total - each.done for each in [*group, row])
            apart = any(each.prefix.embeds is not None for each in [*group, row])
            if group and (apart or even_length(longest, self.chunk) * (len(group) + 1) > self.chunk):
                break
            group.append(row)
        if not group:
            return []
        # A power of two, so that the number of tokens is as even as that of a single row.
        group = group[: 1 << len(group).bit_length() - 1]
        longest = max(row.total - row.done for row in group)
        # oneDNN compiles and keeps kernels for each number of tokens: memory would grow with every new length.
        size = min(even_length(longest, self.chunk), max(1, self.chunk // len(group)))
        # Index of the last prompt token of the rows that end in this chunk; only these get logits.
        ends = {row: row.total - row.done - 1 for row in group if row.total - row.done <= size}
        keep = sorted({*ends.values()}) or [size - 1]
        kept = torch.tensor(keep, device=self.device)
        logits = self._forward(group, self.count, size, self._inputs(group, size), kept)
        for row in group:
            row.done = min(row.total, row.done + size)
        finished = [(row, logits[group.index(row), keep.index(end)]) for row, end in ends.items()]
        for row in ends:
            self._mark_ready(row)
        return finished

    def decode(self) -> Tensor:
        rows = self.ready
        inputs = {"input_ids": torch.tensor([[row.token] for row in rows], device=self.device)}
        logits = self._forward(rows, 0, 1, inputs, 1)
        for row in rows:
            row.done += 1
        return logits[:, -1]

    def _move(self, source: int, target: int, row: RunningRow) -> None:
        self.cache.reserve(target + 1, 1)
        self.cache.move(source, target, row.cached)

    def _forward(
        self, rows: Sequence[RunningRow], first: int, size: int, inputs: dict[str, Tensor], keep: int | Tensor
    ) -> Tensor:
        """Logits [rows, kept, vocabulary] for the next `size` tokens; past the end of a prompt they are meaningless."""
        positions = torch.tensor([[row.done] for row in rows], device=self.device)
        positions = positions + torch.arange(size, device=self.device)
        if size > 1:  # past the end of a prompt, position ids may exceed those of the model
            positions = positions.minimum(torch.tensor([[row.total - 1] for row in rows], device=self.device))
        if self.adapters is not None:
            self.adapters.rows = tuple(row.prefix.adapter for row in rows)
        mask = self.cache.prepare(first, [row.cached for row in rows], size, self.device)
        inputs |= {"attention_mask": mask, "position_ids": positions}
        logits: Tensor = self.model(**inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=keep).logits
        return logits
