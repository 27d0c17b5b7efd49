"""Progress in a notebook: one output that is replaced twice a second at most, and stays when the notebook is saved."""

import sys
import time
from typing import Any

from markupsafe import Markup

from luthier.api import show
from luthier.core.events import Progress
from luthier.core.shell import redacted
from luthier.core.units import duration

EVERY = 0.5
"""Seconds between two pictures; some notebooks flicker when they come faster."""
SHARE = 20
"""A picture may take a twentieth of the time."""
NOTES = 8
"""Notes that are shown, the last ones."""


def in_notebook() -> bool:
    """Is this a kernel of Jupyter, or of one of its relatives, that shows HTML? A terminal's IPython is none."""
    package = sys.modules.get("IPython")  # who is in a notebook has imported it
    shell = package.get_ipython() if package is not None else None
    return getattr(shell, "kernel", None) is not None


class Notebook(Progress):
    """A bar, the latest figures, a table of evaluations and the curve, in one output without ipywidgets."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.text, self.notes = "", list[Markup]()
        self.done, self.total, self.count = 0.0, 0, ""
        self.lines, self.evaluations = list[dict[str, Any]](), list[tuple[str, str, str]]()
        self.opened = time.monotonic()
        self.began = self.shown = self.wait = 0.0
        self.start, self.trained = 0, ""

    def stage(self, text: str) -> None:
        self.text, self.total, self.count = redacted(text), 0, ""
        self._show(now=True)

    def note(self, text: str) -> None:
        self.notes.append(show.soft(redacted(text)))
        self._show()

    def said(self, text: str) -> None:
        self.note(text)

    def warn(self, text: str) -> None:
        self.notes.append(Markup('<div style="color:#b7791f">! {}</div>').format(show.said(redacted(text))))
        self._show()

    def rows(self, done: int, total: int | None) -> None:
        self._count(done, total or 0, f"{done:,} rows")

    def measured(self, what: str, done: int, total: int) -> None:
        self._count(done, total, f"{done:,} of {total:,} {what}")

    def runs(self, done: float, total: int, text: str) -> None:
        self._count(done, total, f"{int(done)} of {total} runs: {text}" if text else f"{int(done)} of {total} runs")

    def train_begins(self, start: int, steps: int) -> None:
        self.began, self.start = time.monotonic(), start
        self.stage(f"training, {steps - start} steps")
        self._count(start, steps, f"step {start} of {steps}")

    def record(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
        step, took = record["step"], time.monotonic() - self.began
        left = took / max(1, step - self.start) * (self.total - step)
        loss = "NaN" if record["loss"] is None else f"{record['loss']:.4f}"
        times = f"{duration(took)}, about {duration(left)} left" if step < self.total else duration(took)
        said = f"step {step} of {self.total}, loss {loss}, {tokens_per_second:,.0f} tokens/s, {times}"
        self.trained = said
        self._count(step, self.total, said)

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        trained = next((line["loss"] for line in reversed(self.lines) if line.get("loss") is not None), None)
        self.evaluations.append((f"{step}", "" if trained is None else f"{trained:.4f}", f"{loss:.4f}{' *' * best}"))
        self._show()

    def train_ends(self) -> None:
        self._show(now=True)

    def finish(self) -> None:
        """The call came to its end without an error."""
        self.stage(f"done in {duration(time.monotonic() - self.opened)}")

    def close(self) -> None:
        """Show the last state, which is what is saved with the notebook."""
        self._show(now=True)

    def _count(self, done: float, total: int, text: str) -> None:
        self.done, self.total, self.count = done, total, text
        self._show()

    def _show(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self.shown < self.wait:
            return
        began = time.monotonic()
        from IPython.display import HTML, display  # type: ignore[import-not-found, unused-ignore]

        page = HTML(self._repr_html_())
        if self.handle is None:
            self.handle = display(page, display_id=True)
        else:
            self.handle.update(page)
        self.shown = time.monotonic()
        self.wait = max(EVERY, SHARE * (self.shown - began))  # the curve of a long run takes longer to draw

    def _repr_html_(self) -> str:
        parts = [Markup("<div>{}</div>").format(show.said(self.text))]
        if self.total:
            parts.append(show.bar(self.done / self.total))
        parts += [show.soft(said) for said in dict.fromkeys((self.count, self.trained)) if said]
        if self.evaluations:
            parts.append(show.html_table((">step", ">training loss", ">held-out loss"), self.evaluations))
        return Markup("").join([*parts, show.loss_svg(self.lines), *self.notes[-NOTES:]])
