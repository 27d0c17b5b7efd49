"""What an evaluation is: one record per held-out example, and metrics computed from the records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from luthier.core.events import Progress
from luthier.evaluation.records.settings import EvaluateConfig
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example
from luthier.rendering.row import Row
from luthier.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

Record = dict[str, Any]
"""What was measured on one example: numbers, and the model's own words."""


def restored(records: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Records as they were before JSON, which keeps a number that is not finite as null."""
    return [{key: math.nan if value is None else value for key, value in each.items()} for each in records]


class Memory(Protocol):
    """Where what was measured is kept for another time."""

    def recall(self, kind: str, decides: Mapping[str, Any]) -> Any:
        """What was kept under these values, or None."""

    def keep(self, kind: str, decides: Mapping[str, Any], value: Any) -> None:
        """Keep JSON values under all that decides what they are."""


class Forgetful:
    """A memory that keeps nothing."""

    def recall(self, kind: str, decides: Mapping[str, Any]) -> Any:
        """Nothing."""
        return None

    def keep(self, kind: str, decides: Mapping[str, Any], value: Any) -> None:
        """Nothing."""


@dataclass(slots=True)
class EvalContext:
    """A model and the held-out rows it is to be measured on."""

    model: nn.Module
    template: Template
    task: Task
    examples: Sequence[Example]
    rows: Sequence[Row]
    owner: Sequence[int]
    """For each row the number of its example: a long text has several rows."""
    max_length: int
    settings: EvaluateConfig = field(default_factory=EvaluateConfig)
    labels: Sequence[str] = ()
    """All labels of the data, those of the training rows included, sorted."""
    progress: Progress = field(default_factory=Progress)
    memory: Memory = field(default_factory=Forgetful)
    answers: list[Record] | None = None
    """What the model said to the held-out prompts, once it was asked (see generate.answered)."""
    counts: dict[str, int] = field(default_factory=dict)
    """What went wrong or was cut, by name, for the report."""

    def batches(self, rows: Sequence[Row], what: str = "rows") -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """(row numbers, batch on the model's device), rows of like length together; says how far it is."""
        where = next(self.model.parameters()).device
        pad = self.template.tokenizer.pad_token_id or 0
        done = 0
        for numbers in by_length([len(row.ids) for row in rows], self.settings):
            batch = self.task.collate([rows[i] for i in numbers], pad)
            yield numbers, {key: value.to(where) for key, value in batch.items()}
            done += len(numbers)
            self.progress.measured(what, done, len(rows))


def by_length(lengths: Sequence[int], settings: EvaluateConfig) -> Iterator[list[int]]:
    """Places of like length together, in passes of at most `batch_size` rows and `batch_tokens` padded tokens."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = (len(batch) + 1) * lengths[place] > settings.batch_tokens
        if batch and (full or len(batch) == settings.batch_size):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
