"""What a tracker is: a program or service that shows the course of a run, beside metrics.jsonl.

A tracker never meets the training loop. pipeline.track reads the run folder in a thread of its own and calls the
methods below, in this order: load, begin, then log and flush as long as the run goes on, at the end texts, image,
page and summary, and finish. metrics.jsonl stays the truth, so whatever a tracker has lost can be sent once more.
"""

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from luthier.core.errors import MissingExtra, install
from luthier.core.registry import Family, Plugin

State = Literal["finished", "stopped", "failed"]
"""How a run ended: stopped by a signal (or killed), or failed with an error."""
LEARNING_RATE, HELD_OUT = "train/learning_rate", "validation/loss"
"""Values that every step has, and that every evaluation has."""


class Position(NamedTuple):
    """A place in the course of a run; what lies at it or before it is in the tracker."""

    step: int
    """Optimizer step, from 1."""
    part: int
    """0: the step itself, 1: the evaluation behind it, 2: the result of the whole run."""


START = Position(0, 0)


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of a run when it begins."""

    name: str
    """Name of the run folder."""
    path: Path
    """The run folder."""
    id: str
    """Identity in the tracker: 16 hexadecimal digits, made once and kept in trackers.json."""
    resumed: bool
    """Whether the tracker has begun this run before."""
    config: Mapping[str, str | int | float | bool]
    """Recipe and environment: `train.lr` -> 0.0005, `environment.python` -> 3.11.7."""

    def shown(self, folder: Path) -> Path:
        """A folder as it is typed: relative where it is below the working folder."""
        return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder

    def beside(self, folder: str, default: str) -> Path:
        """The folder for a tracker's own files: the one named in the recipe, else `default` beside the run folder."""
        return Path(folder).expanduser().absolute() if folder else self.path.absolute().parent / default


class Tracker(Plugin):
    """Where else the course of a run is shown. An object of a class of yours is one as well."""

    required: ClassVar[tuple[str, ...]] = ("begin", "log")
    extra: ClassVar[str] = ""
    """The optional packages of Luthier that it needs (core.errors.EXTRAS)."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Modules that have to be installed; the first is imported before the first step is sent."""
    quiet: ClassVar[Mapping[str, str]] = {}
    """Environment variables that keep the package from reporting its own use, where the user has not set them."""

    project: str = "luthier"
    """What the tracker collects runs under."""
    wait: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    """Longest time to wait for the tracker at the end of the run, in seconds; `luthier track` sends what is left."""

    def check(self) -> None:
        """MissingExtra where a package is not installed. Cheap: comes before anything is read."""
        for package in self.packages:
            if find_spec(package) is None:
                raise MissingExtra(
                    f"the tracker {self.name} needs {package}, which is not installed", fix=install(self.extra)
                )

    def load(self) -> None:
        """Import what is needed."""
        for variable, value in self.quiet.items():
            os.environ.setdefault(variable, value)
        for package in self.packages[:1]:
            importlib.import_module(package)

    def begin(self, run: TrackedRun) -> Position | None:
        """Open the run, or open it again, and return what the tracker certainly has of it.

        None: what trackers.json notes, which counts what was logged before a `flush`.
        """
        raise NotImplementedError

    def log(self, step: int, values: Mapping[str, float], time: float | None = None) -> None:
        """Values of one step, such as {"train/loss": 0.7}, in the order of the steps.

        `time` is when they were measured, in seconds since 1970; None: now.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Return when all that was logged is stored, so that a kill of this process cannot lose it."""

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        """The scores of the whole run, such as base/accuracy, with _low and _high: the ends of a 95 % interval."""
        self.log(step, scores_of(values))

    def texts(self, step: int, name: str, texts: Mapping[str, str]) -> None:
        """Texts by their captions, such as answers of the model."""

    def image(self, step: int, name: str, file: Path) -> None:
        """A PNG."""

    def page(self, step: int, name: str, file: Path) -> None:
        """A self-contained HTML page."""

    def command(self, run: TrackedRun) -> str:
        """What to type to see the run, or to send it; empty where nothing has to be typed."""
        return ""

    def finish(self, state: State, error: str) -> None:
        """The run has ended; `error` is empty unless it failed. Return when everything is stored."""


def markdown(texts: Mapping[str, str]) -> str:
    """Texts by their captions as one text, for trackers that show Markdown."""
    return "\n\n---\n\n".join(f"**{caption}**\n\n{text}" for caption, text in texts.items())


def scores_of(summary: Mapping[str, float]) -> dict[str, float]:
    """What of a summary is shown where each value is a chart of one point: the score that ranks, and the loss."""
    ranks = [name.partition("/")[2] for name in summary if name.startswith("tuned/")][:1]
    names = [f"{side}/{name}" for name in dict.fromkeys([*ranks, "loss"]) for side in ("base", "tuned")]
    return {name: summary[name] for name in names if name in summary}


TRACKERS = Family(Tracker, "tracker")
