"""What a run reports while it works: the terminal, a file, a tracker, a test or a web page listens."""

from collections.abc import Callable, Sequence
from typing import Any, Self


class Progress:
    """A listener that says nothing. Subclass it and override what you want to show."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing more is reported."""

    def stage(self, text: str) -> None:
        """A new part of the work began."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def warn(self, text: str) -> None:
        """Something the user should know and may want to change."""

    def ask(self, question: str, answers: Sequence[str]) -> int | None:
        """The number of the answer that the user chooses; None without a user to ask."""
        return None

    def rows(self, done: int, total: int | None) -> None:
        """So many rows are read or tokenized; `total` is None while their number is unknown."""

    def runs(self, done: float, total: int, text: str) -> None:
        """So many of the runs of a comparison are done, parts of runs counted; `text` says what is at work."""

    def said(self, text: str) -> None:
        """One of many parts of the work came to its end."""

    def measured(self, what: str, done: int, total: int) -> None:
        """So many of `total` are evaluated; `what` is a word for them."""

    def train_begins(self, start: int, steps: int) -> None:
        """Steps `start` + 1 to `steps` follow."""

    def record(self, line: dict[str, Any]) -> None:
        """A line for metrics.jsonl: a step that was taken or left out, or an evaluation."""

    def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
        """One optimizer step was taken; `record` is its line of metrics.jsonl."""

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        """The held-out loss was measured."""

    def saved(self, step: int) -> None:
        """A checkpoint is whole."""

    def train_ends(self) -> None:
        """No more steps follow."""


SILENT = Progress()


class Listeners(Progress):
    """Reports to each of a list, in order; a question is answered by the first that has an answer."""

    def __init__(self, *listeners: Progress) -> None:
        self.listeners = [*listeners]

    def call(self, method: str, *values: Any) -> Any:
        """Report one event, which is a method of Progress and its values."""
        answers = [getattr(listener, method)(*values) for listener in self.listeners]
        return next((answer for answer in answers if answer is not None), None)


def _forward(name: str) -> Callable[..., Any]:
    return lambda self, *values: self.call(name, *values)


for _name in [name for name in vars(Progress) if not name.startswith("_")]:
    setattr(Listeners, _name, _forward(_name))


class Guarded(Listeners):
    """A listener that may fail without ending the run: then it is reported once and left out."""

    def __init__(self, name: str, listener: Progress, report: Progress) -> None:
        super().__init__(listener)
        self.name, self.report = name, report

    def call(self, method: str, *values: Any) -> Any:
        """As Listeners does it, but an exception costs this listener alone."""
        try:
            return super().call(method, *values)
        except Exception as error:
            self.listeners.clear()
            self.report.warn(f"the listener {self.name} failed and is left out: {type(error).__name__}: {error}")
