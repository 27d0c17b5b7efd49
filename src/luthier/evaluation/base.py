"""What an evaluation is: one record per held-out example, and metrics computed from the records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from luthier.data.example import Example
from luthier.data.template import Template
from luthier.evaluation.settings import EvaluateConfig
from luthier.plugins import Family, Plugin
from luthier.tasks.base import Row, Task
from luthier.training.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

Record = dict[str, Any]
"""What was measured on one example: numbers, and the model's own words."""


def restored(records: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Records as they were before JSON, which keeps a number that is not finite as null."""
    return [{key: math.nan if value is None else value for key, value in each.items()} for each in records]


MetricFunction = Callable[[Sequence[Record]], float]


@dataclass(frozen=True)
class OfSums:
    """A metric that follows from sums over the records, so that a resample costs a matrix product and not a loop."""

    terms: Callable[[Sequence[Record]], NDArray[Any]]
    """[records, terms]: what is summed."""
    value: Callable[[NDArray[Any]], NDArray[Any]]
    """[draws, terms] -> [draws]: the metric of each sum."""

    def __call__(self, records: Sequence[Record]) -> float:
        """The metric of these records; 0 of none."""
        return float(self.value(self.terms(records).sum(0, keepdims=True))[0]) if records else 0.0


def mean_of(key: str) -> OfSums:
    """The mean of record[key] over the records that have it."""
    import numpy as np

    def terms(records: Sequence[Record]) -> NDArray[Any]:
        return np.array([[float(r[key]), 1.0] if key in r else [0.0, 0.0] for r in records]).reshape(-1, 2)

    return OfSums(terms, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1))


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
class Subject:
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


class Evaluation(Plugin):
    """One way to measure a model."""

    higher_is_better: ClassVar[bool] = True

    def applies(self, subject: Subject) -> bool:
        """Can these rows be measured this way?"""
        raise NotImplementedError

    def lacks(self, subject: Subject) -> str:
        """What keeps an evaluation that would fit from being made, with the mend; mostly nothing."""
        return ""

    def measure(self, subject: Subject) -> list[Record]:
        """One record per example, in order; all evaluations of an example share one record in the end."""
        raise NotImplementedError

    def metrics(self) -> dict[str, MetricFunction]:
        """Metric names and how each follows from the records."""
        raise NotImplementedError

    def higher(self, metric: str) -> bool:
        """Is more of this metric better?"""
        return self.higher_is_better


EVALUATIONS = Family(
    Evaluation,
    "evaluation",
    apart=frozenset({"generate", "score", "settings", "contrast", "forgetting", "harness", "choice", "words"}),
)
