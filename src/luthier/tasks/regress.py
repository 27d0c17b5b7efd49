"""Regress: a number per text or pair of texts, by a head with one output on a decoder or an encoder.

As task classify, but the head has one output and the loss is the squared error: (prediction - number)^2. STS-B is such
a task: how alike two sentences are, from 0 to 5.
"""

import math
import struct
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from luthier.core.errors import DataError
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example, RowError
from luthier.rendering.row import LongRow, Row
from luthier.tasks.base import Batch, Model, Task, Tensor, encode_texts

MOST = 1e30  # the square of a larger one exceeds float32


class Regress(Task):
    """Predict a number, such as how alike two sentences are."""

    model_class: ClassVar[Literal["causal", "classification"]] = "classification"
    numeric: ClassVar[bool] = True
    labels: ClassVar[tuple[str, ...]] = ("number",)
    """The one output of the head."""

    def fitted(self, labels: Sequence[str | None]) -> Self:
        numbers = {number for label in labels if label is not None and (number := _number(label)) is not None}
        if len(numbers) < 2:
            fix = "choose the column with data.format.label=COLUMN, or task=classify for labels in words"
            raise DataError(f"the training rows have {len(numbers)} different numbers to learn", fix=fix)
        return self

    def encode(self, example: Example, template: Template, max_length: int, on_long: LongRow) -> list[Row]:
        if example.label is None:
            raise RowError("the row has no number", fix="name the column with data.format.label=COLUMN")
        number = _number(example.label)
        if number is None:
            raise RowError(f"label {example.label!r} is not a number", fix="task=classify learns labels in words")
        (bits,) = struct.unpack("<i", struct.pack("<f", number))  # of the float32: rows and batches keep whole numbers
        return [encode_texts(example, template, max_length, on_long, bits)]

    def label_of(self, row: Row) -> str:
        return f"{struct.unpack('<f', struct.pack('<i', row.labels[0]))[0]:g}"

    def losses(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        import torch

        guess = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].float()  # [B]
        numbers = batch["labels"][:, 0].int().view(torch.float32)
        return (guess - numbers) ** 2, torch.ones_like(guess, dtype=torch.long)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) < MOST else None
