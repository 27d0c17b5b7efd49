"""What an evaluation is given: the model, the held-out rows and their settings; it makes one record per example."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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


def restored_records(records: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Records as they were before JSON, which stores NaN and infinity as null."""
    return [{key: math.nan if value is None else value for key, value in each.items()} for each in records]


class Memory:
    """A cache of measurements. This one keeps nothing; subclasses do."""

    def recall(self, kind: str, decides: Mapping[str, Any]) -> Any:
        """The value kept under `decides`, or None."""
        return None

    def keep(self, kind: str, decides: Mapping[str, Any], value: Any) -> None:
        """Keep a JSON value under everything that decides what it is."""


@dataclass(slots=True)
class EvalContext:
    """A model and the held-out rows to evaluate it on."""

    model: "nn.Module"
    template: Template
    task: Task
    examples: Sequence[Example]
    rows: Sequence[Row]
    owner: Sequence[int]
    """For each row the number of its example: a long text has several rows."""
    max_length: int
    settings: EvaluateConfig = field(default_factory=EvaluateConfig)
    labels: Sequence[str] = ()
    """All labels of the data, including training rows, sorted."""
    progress: Progress = field(default_factory=Progress)
    memory: Memory = field(default_factory=Memory)
    answers: list[Record] | None = None
    """The generated answers, once there are any (see generate.answered)."""
    counts: dict[str, int] = field(default_factory=dict)
    """What failed or was cut, by name, for the report."""

    @property
    def device(self) -> Any:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def pad(self) -> int:
        """Token id for padding."""
        return self.template.tokenizer.pad_token_id or 0

    def batches(self, rows: Sequence[Row], what: str = "rows") -> "Iterator[tuple[list[int], dict[str, Tensor]]]":
        """(row numbers, batch on the model's device), rows of similar length together; reports progress."""
        done = 0
        for numbers in by_length([len(row.ids) for row in rows], self.settings):
            yield numbers, self.collate([rows[i] for i in numbers])
            done += len(numbers)
            self.progress.measured(what, done, len(rows))

    def collate(self, rows: Sequence[Row]) -> "dict[str, Tensor]":
        """A batch of these rows, on the model's device."""
        return {key: value.to(self.device) for key, value in self.task.collate(list(rows), self.pad).items()}

    def losses(self) -> list[Record]:
        """For each example the task's own loss, summed over its targets, and their number."""
        import torch

        records: list[Record] = [{"loss_sum": 0.0, "targets": 0} for _ in self.examples]
        with torch.inference_mode():
            for numbers, batch in self.batches(self.rows, "held-out rows"):
                sums, targets = self.task.losses(self.model, batch)
                for number, total, count in zip(numbers, sums.tolist(), targets.tolist(), strict=True):
                    records[self.owner[number]]["loss_sum"] += total
                    records[self.owner[number]]["targets"] += count
        return records

    def logits(self) -> "list[tuple[int, Tensor]]":
        """(number of its example, logits [labels] in float32) of each row, for models with a head for labels."""
        import torch

        made: list[tuple[int, Tensor]] = []
        with torch.inference_mode():
            for numbers, batch in self.batches(self.rows, "held-out rows"):
                logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                made += zip((self.owner[number] for number in numbers), logits.float().cpu(), strict=True)
        return made


def by_length(lengths: Sequence[int], settings: EvaluateConfig) -> Iterator[list[int]]:
    """Places of similar length together, in batches of at most `batch_size` rows and `batch_tokens` padded tokens."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = (len(batch) + 1) * lengths[place] > settings.batch_tokens
        if batch and (full or len(batch) == settings.batch_size):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
