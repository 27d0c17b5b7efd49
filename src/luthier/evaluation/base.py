"""What an evaluation is: one record per held-out example, and metrics computed from the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.data.example import Example
from luthier.data.template import Template
from luthier.plugins import Family, Plugin
from luthier.tasks.base import Row, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

Record = dict[str, Any]
"""What was measured on one example: numbers, and the model's own words."""

MetricFunction = Callable[[Sequence[Record]], float]


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
    batch_size: int
    max_new_tokens: int
    generate: int
    """How many examples to generate an answer for."""
    max_length: int

    def batches(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """(row numbers, batch on the model's device), rows of like length together."""
        where = next(self.model.parameters()).device
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        pad = self.template.tokenizer.pad_token_id or 0
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            batch = self.task.collate([rows[i] for i in numbers], pad)
            yield numbers, {key: value.to(where) for key, value in batch.items()}


class Evaluation(Plugin):
    """One way to measure a model."""

    higher_is_better: ClassVar[bool] = True

    def applies(self, subject: Subject) -> bool:
        """Can these rows be measured this way?"""
        raise NotImplementedError

    def measure(self, subject: Subject) -> list[Record]:
        """One record per example, in order; all evaluations of an example share one record in the end."""
        raise NotImplementedError

    def metrics(self) -> dict[str, MetricFunction]:
        """Metric names and how each follows from the records."""
        raise NotImplementedError


EVALUATIONS = Family(Evaluation, "evaluation", apart=frozenset({"generate", "score"}))
