"""A row: token ids and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.rendering.example import Message

IGNORED = -100
"""Label of a token that carries no loss; the value torch and transformers use."""
EVEN = 64
"""Tokens: lengths of long packed sequences are multiples of it."""
LongRow = Literal["stop", "skip", "split", "truncate_prompt", "truncate_answer"]


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids [T] and their labels: a label is the id itself or IGNORED; for classification, one class number."""

    ids: list[int]
    labels: list[int]
    where: str = ""
    cut: int = 0
    """Tokens that a truncation policy took away."""
    messages: Sequence[Message] = ()
    """The messages that the ids render, in a row that a chat template made."""

    @property
    def learned(self) -> int:
        """Targets in the row: a next-token target cannot be the first token."""
        return sum(label != IGNORED for label in self.labels[1:]) if len(self.labels) > 1 else 1


def even_length(length: int, most: int) -> int:
    """One of eight lengths in each octave that is not below `length`, nor, for that, above `most`."""
    step = max(8, 1 << length.bit_length() >> 4)
    return max(length, min(most, -(-length // step) * step))
