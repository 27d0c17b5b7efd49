"""What all runs of a comparison have in common, and how they are set to work."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.comparison import workers
from luthier.comparison.candidates import Arm
from luthier.core.errors import InputError, Stopped
from luthier.core.events import Progress
from luthier.pipeline.prepare import SharedInputs
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder

TRIAL_STEPS = 2
"""Of each run, when it is decided how many to do at a time."""


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """What is asked for beside the recipe."""

    methods: str = "all"
    budget: float | None = None
    """Seconds for everything."""
    tokens: int | None = None
    """Training tokens of each run."""
    seeds: int = 1
    tune: bool = False
    workers: int | None = None
    """Runs at a time; None: as many as are faster."""


@dataclass(slots=True)
class Shared:
    """What all runs have in common."""

    config: RunConfig
    wish: CompareConfig
    folder: Path
    arms: list[Arm]
    seeds: list[int]
    given: SharedInputs
    device: str
    progress: Progress
    steps: int = 0
    workers: int = 1
    threads: int = 1
    chosen: dict[str, dict[str, Any]] | None = None
    """By --tune, for each method."""

    @property
    def fork(self) -> bool:
        return workers.can_fork(self.device)


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train(config: RunConfig, given: SharedInputs, send: workers.Send) -> dict[str, Any]:
    """One run, as `luthier train` would make it, on what is given."""
    from luthier.pipeline.train import train as train_run

    return train_run(config, progress=Telling(send), shared=given)


class Telling(Progress):
    """Says from another process how far a run is."""

    def __init__(self, send: workers.Send) -> None:
        self.send, self.total, self.at = send, 0, 0.0

    def train_begins(self, start: int, steps: int) -> None:
        self.total = steps

    def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
        now = time.monotonic()
        if now - self.at > 0.5:
            self.at = now
            self.send({"part": record["step"] / self.total})


def work(
    shared: Shared, jobs: Sequence[workers.Job], subjects: Sequence[Any], name: Callable[[Any], str]
) -> Iterator[tuple[workers.Event, Any]]:
    """Do them, with a bar over all; yields (event, subject) for each that ended. Raises Stopped after a signal."""
    parts = [0.0] * len(jobs)
    stopped = None
    for event in workers.work(jobs, workers=shared.workers, threads=shared.threads, fork=shared.fork):
        if event.kind == "said":
            parts[event.job] = min(0.99, event.value["part"])
        else:
            parts[event.job] = 1.0
            if event.kind == "stopped":
                stopped = int(event.value)
            else:
                yield event, subjects[event.job]
        active = [name(s) for s, part in zip(subjects, parts, strict=True) if 0 < part < 1]
        shared.progress.runs(sum(parts), len(parts), ", ".join(active))
    shared.progress.train_ends()
    if stopped is not None:
        raise Stopped("stopped; everything that was trained is saved", stopped)


def at_a_time(shared: Shared) -> tuple[int, float]:
    """(runs to do at a time, seconds of a step of one of them), by trying a few steps both ways."""
    count = processors()
    first = next(arm for arm in shared.arms if not arm.reason and arm.config.model.quantize == "none")
    place = shared.folder / "trial"

    def job(number: int) -> workers.Job:
        config = first.of(shared.config.seed, place, steps=1 + TRIAL_STEPS, evaluate_every=10_000, save_every=10_000)
        little = config.evaluate.model_copy(update={"before": False, "generate": 0, "rows": 2})
        config = config.model_copy(update={"run": f"{place}/{number}", "evaluate": little})
        given = replace(shared.given, before=None, finished=lambda loaded, run: None)
        return lambda send: train(config, given, send)

    def seconds(count: int, threads: int) -> float:
        jobs = [job(number) for number in range(count)]
        for end in workers.work(jobs, workers=count, threads=threads, fork=shared.fork):
            if end.kind != "said":
                raise_end(end, f"a trial of {first.name}")
        steps = [r["seconds"] for n in range(count) for r in RunFolder(Path(f"{place}/{n}")).history() if r["step"] > 1]
        shutil.rmtree(place, ignore_errors=True)
        return float(sum(steps) / len(steps))

    shared.progress.stage("trying how many runs at a time are fastest")
    alone = seconds(1, count)
    if not shared.fork or count == 1 or shared.wish.workers == 1:
        return 1, alone
    threads = count
    count = shared.wish.workers or threads
    beside = seconds(count, max(1, threads // count))
    if shared.wish.workers or beside / count < 0.9 * alone:
        shared.progress.note(f"{count} runs at a time, {alone * count / beside:.2f} times as fast as one after another")
        return count, beside
    return 1, alone


def raise_end(end: workers.Event, what: str) -> None:
    """Raise what a job that nothing goes without ended with, unless it is done."""
    if end.kind == "stopped":
        raise Stopped("stopped; the same command again goes on", int(end.value))
    if end.kind == "failed":
        raise InputError(f"{what}: {end.value}")
