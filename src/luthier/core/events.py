"""What a run says while it works; the terminal, a test or a web page listens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Progress:
    """A listener that says nothing. Subclass it and override what you want to show."""

    def stage(self, text: str) -> None:
        """A new part of the work began."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def warn(self, text: str) -> None:
        """Something the user should know and may want to change."""

    def ask(self, question: str, answers: Sequence[str]) -> int | None:
        """The number of the answer that the user chooses; None where there is nobody to ask."""
        return None

    def rows(self, done: int, total: int | None) -> None:
        """So many rows are read or tokenized; `total` is None while nobody knows how many there are."""

    def runs(self, done: float, total: int, text: str) -> None:
        """So many of the runs of a comparison are done, parts of runs counted; `text` says what is at work."""

    def said(self, text: str) -> None:
        """One of many parts of the work came to its end."""

    def measured(self, what: str, done: int, total: int) -> None:
        """So many of `total` are evaluated; `what` is a word for them."""

    def train_begins(self, start: int, steps: int) -> None:
        """Steps `start` + 1 to `steps` follow."""

    def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
        """One optimizer step was taken; `record` is its line of metrics.jsonl."""

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        """The held-out loss was measured."""

    def saved(self, step: int) -> None:
        """A checkpoint is whole."""

    def train_ends(self) -> None:
        """No more steps follow."""
