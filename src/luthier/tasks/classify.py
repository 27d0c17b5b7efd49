"""Classify: a label per text, by a classification head on a decoder or an encoder.

transformers pools the last real token of a decoder, or the first of an encoder, and a linear head maps it to one logit
per label; the loss is cross-entropy.
"""

import re
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from luthier.core.errors import DataError
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example, RowError
from luthier.rendering.row import LongRow, Row
from luthier.tasks.base import Batch, Model, Task, Tensor, encode_texts

NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")


class Classify(Task):
    """Choose one of a fixed set of labels."""

    model_class: ClassVar[Literal["causal", "classification"]] = "classification"

    labels: tuple[str, ...] = ()
    """The classes in the order of the head's outputs; empty takes them from the training rows, sorted."""

    def fitted(self, labels: Sequence[str | None]) -> Self:
        if self.labels:
            return self
        found = {label for label in labels if label is not None}
        if len(found) < 2:
            message = f"classification needs at least two labels, the training rows have {len(found)}: {sorted(found)}"
            raise DataError(message, fix="choose the label column with data.format.label=COLUMN, or another task")
        numbers = sorted((label for label in found if NUMBER.fullmatch(label)), key=lambda label: (float(label), label))
        words = sorted(found.difference(numbers))
        if numbers and words:
            message = f"the labels of the training rows mix numbers ({_some(numbers)}) and words ({_some(words)})"
            fix = "data.format.names=[WORD,WORD] reads 0 and 1 as words; if both are meant, list all in task.labels"
            raise DataError(message, fix=fix)
        return self.model_copy(update={"labels": tuple(numbers or words)})

    def encode(self, example: Example, template: Template, max_length: int, on_long: LongRow) -> list[Row]:
        if example.label is None:
            raise RowError("the row has no label", fix="name the column with data.format.label=COLUMN")
        if example.label not in self.labels:
            known = f"{_some(self.labels)} (those of the training rows, or of task.labels)"
            fix = "fix it, list all classes in task.labels, or leave such rows out with data.on_bad_row=skip"
            raise RowError(f"label {example.label!r} is none of the classes {known}", fix=fix)
        return [encode_texts(example, template, max_length, on_long, self.labels.index(example.label))]

    def label_of(self, row: Row) -> str:
        return self.labels[row.labels[0]]

    def losses(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        import torch
        import torch.nn.functional as F

        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits  # [B, classes]
        target = batch["labels"][:, 0]
        return F.cross_entropy(logits.float(), target, reduction="none"), torch.ones_like(target)


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
