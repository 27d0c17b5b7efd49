"""What follows a run for a tracker: a thread of its own that reads the run folder, while the run goes on or later.

The training loop only writes metrics.jsonl. A `Follower` reads the lines behind the last one that its tracker has,
sends them, and notes in trackers.json how far it is. So a tracker that is slow, hangs or fails costs the run nothing, a
resumed run goes on where the tracker is (the lines that it repeats are skipped), and `track` sends a run that has ended
by the same way.
"""

import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.core import files
from luthier.core.errors import InputError, Stopped, first_line
from luthier.core.events import SILENT, Guarded, Listeners, Progress
from luthier.core.shell import public, redacted, shell_line
from luthier.recipe.identity import read_recipe
from luthier.runs.folder import RunFolder
from luthier.runs.remote import local
from luthier.runs.state import MetricsReader
from luthier.tracking.base import HELD_OUT, LEARNING_RATE, START, Position, State, TrackedRun, Tracker

EVERY = 2.0
"""Seconds between two looks at metrics.jsonl: a tracker shows a step at most so much later."""
HANGS = 300.0
"""A tracker whose call takes so many seconds is left out: MLflow can take one minute to start beside a training."""
NICE = 19
"""Priority of the thread that sends: the lowest."""
SAMPLES = 8
"""Generated answers that a tracker gets at the end."""
STEP_VALUES = {"loss": "train/loss", "lr": LEARNING_RATE, "grad_norm": "train/grad_norm", "validation_loss": HELD_OUT}
MEMORY = {"memory": "memory/process_gb", "device_memory": "memory/device_gb"}
"""Keys of metrics.jsonl -> names in a tracker, which groups by what stands before the slash."""
ENVIRONMENT = ("python", "system", "processors", "packages", "command")


class Notes:
    """trackers.json: for each tracker its identity of the run, the last step sent, and how the run ended there."""

    _lock = threading.Lock()
    """One for all: several followers write into one file."""

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.trackers

    def read(self) -> dict[str, dict[str, Any]]:
        """Tracker -> what is noted of it. InputError where the file is damaged."""
        found = files.read_object(self.path, self._fix()) if self.path.is_file() else {}
        for name, entry in found.items():
            if not (isinstance(entry, dict) and {"id", "settings", "step", "part", "state"} <= entry.keys()):
                raise InputError(f"{self.path}: the entry {name!r} is damaged", fix=self._fix())
        return dict(found)

    def write(self, name: str, **values: Any) -> None:
        """Add to what is noted of a tracker."""
        with self._lock:
            whole = self.read()
            files.write_json(self.path, {**whole, name: {**whole.get(name, {}), **values}})

    def known(self, name: str, tracker: Tracker) -> dict[str, Any] | None:
        """What is noted of a tracker with these settings; None where it has not begun the run in that place."""
        found = self.read().get(name)
        return found if found is not None and found["settings"] == self._settings(tracker) else None

    def begin(self, name: str, tracker: Tracker) -> dict[str, Any]:
        """Give a tracker a new identity of the run; returns what is noted of it then."""
        new = {"id": secrets.token_hex(8), "settings": self._settings(tracker), "step": 0, "part": 0, "state": "begun"}
        self.write(name, **new, error="")
        return new

    def _settings(self, tracker: Tracker) -> dict[str, Any]:
        return tracker.model_dump(mode="json", exclude={"wait"})

    def _fix(self) -> str:
        return f"{shell_line('rm', self.path)}; the trackers then begin a second run, beside what they have of this one"


def place(line: Mapping[str, Any]) -> Position:
    """Where a line of metrics.jsonl stands in the course of the run."""
    return Position(line["step"], int("validation_loss" in line))


def values_of(line: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl as a tracker shows it, memory in GB; numbers that are not finite are left out."""
    values = {name: line[key] for key, name in STEP_VALUES.items() if line.get(key) is not None}
    values |= {name: line[key] / 1e9 for key, name in MEMORY.items() if line.get(key) is not None}
    if line.get("tokens") and line.get("seconds"):
        values["train/tokens_per_second"] = line["tokens"] / line["seconds"]
    return values


class Follower(threading.Thread):
    """Sends one run to one tracker. What goes wrong is kept in `failure` and never raised."""

    def __init__(self, tracker: Tracker, name: str, folder: RunFolder) -> None:
        super().__init__(daemon=True, name=f"luthier-track-{name}")
        self.tracker, self.key, self.folder, self.notes = tracker, name, folder, Notes(folder)
        self.lines, self.done, self.begun = MetricsReader(folder.metrics), START, False
        self.failure: Exception | None = None
        self.busy: float | None = None
        """Since when a call of the tracker has been at work, by time.monotonic(); None between calls."""
        self.state: State = "stopped"
        self.error = ""
        self.shows = ""
        """What to type to see the run, when it is in the tracker."""
        self.ended = threading.Event()

    def end(self, state: State, error: str = "") -> None:
        """The run has ended: send what is left, and finish."""
        self.state, self.error = state, error
        self.ended.set()

    def run(self) -> None:
        """Send lines until the run has ended and all of them are sent."""
        if threading.current_thread() is self and sys.platform == "linux":
            # The threads that train go first; those that a tracker starts inherit this.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            self.busy = time.monotonic()
            self.tracker.load()
            last = False
            while not last:
                last = self.ended.is_set()  # looked at first: what was written before the end is read below
                self._send(self.lines.new())
                self.busy = None
                self.ended.wait(0 if last else EVERY)
            if self.begun:  # a run without a step leaves no folder behind, and no run in a tracker
                self._finish()
        except Exception as error:
            self.failure = error
        self.busy = None

    def _begin(self) -> None:
        resumed = (known := self.notes.known(self.key, self.tracker)) is not None
        if known is None:  # noted before the tracker sees it: a kill between the two must not make a second run there
            known = self.notes.begin(self.key, self.tracker)
        path, begun = self.folder.path.absolute(), Position(known["step"], known["part"])
        there = self.folder.read_json(self.folder.environment)
        config = flat(read_recipe(self.folder).model_dump(mode="json"))
        config |= flat({key: there[key] for key in ENVIRONMENT if key in there}, "environment")
        self.tracked = TrackedRun(path.name, path, known["id"], resumed, config)
        found = self.tracker.begin(self.tracked)
        self.done, self.begun = begun if found is None else found, True
        self.notes.write(self.key, step=self.done.step, part=self.done.part, state="running", error="")

    def _send(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if lines and not self.begun:
            self._begin()
        sent = self.done
        for line in lines:
            if place(line) > sent:
                sent, self.busy = place(line), time.monotonic()
                if values := values_of(line):
                    self.tracker.log(line["step"], values, line.get("time"))
        if sent != self.done:
            self.busy = time.monotonic()
            self.tracker.flush()
            self.done = sent
            self.notes.write(self.key, step=sent.step, part=sent.part)

    def _finish(self) -> None:
        tracker, step, part, result = self.tracker, self.done.step, self.done.part, None
        if self.state == "finished" and part < 2:
            result = self.folder.read_json(self.folder.result)
            for name, texts in (("scores", scores_as_text(result)), ("samples", samples(self.folder))):
                if texts:
                    tracker.texts(step, name, texts)
        for send, file in ((tracker.image, self.folder.loss_png), (tracker.page, self.folder.report)):
            if part < 2 and file.is_file() and file.stat().st_size:
                self.busy = time.monotonic()
                send(step, file.stem, file)
        if result is not None:
            tracker.summary(step, summary_of(result))
        tracker.flush()
        tracker.finish(self.state, self.error)
        part = 2 if self.state == "finished" else part
        self.notes.write(self.key, step=step, part=part, state=self.state, error=self.error)
        self.shows = tracker.command(self.tracked)


def flat(value: Any, prefix: str = "") -> dict[str, str | int | float | bool]:
    """{"train": {"lr": 0.1}} as {"train.lr": 0.1}: lists become text, secrets ***, and folders keep their last name.

    What is none or empty is left out.
    """
    if value in (None, "", [], {}):
        return {}
    if isinstance(value, dict):
        parts = [flat(inner, f"{prefix}.{key}".strip(".")) for key, inner in value.items()]
        return {name: leaf for part in parts for name, leaf in part.items()}
    if isinstance(value, bool | int | float):
        return {prefix: value}
    if isinstance(value, list) and not any(isinstance(each, dict | list) for each in value):
        value = " ".join(map(str, value))
    return {prefix: public(redacted(str(value)))}


def summary_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The scores before and after: base/accuracy, tuned/accuracy, each also with _low and _high; and the totals."""
    totals = {"tokens": "total/tokens", "train_seconds": "total/seconds", "kept_step": "total/kept_step"}
    found = {name: result[key] for key, name in totals.items() if result.get(key) is not None}
    for side in ("base", "tuned"):
        for name, score in result[side].items():
            ends = {"": "value", "_low": "low", "_high": "high"}
            found |= {f"{side}/{name}{end}": score[key] for end, key in ends.items() if score.get(key) is not None}
    return found


def scores_as_text(result: Mapping[str, Any]) -> dict[str, str]:
    """Name of a score -> before, after and the difference, each with its 95 % interval."""

    def shown(score: Mapping[str, Any]) -> str:
        value, low, high = (score.get(key) for key in ("value", "low", "high"))
        return "not measured" if None in (value, low, high) else f"{value:.4g} ({low:.4g} to {high:.4g})"

    sides = ("base", "tuned", "difference")
    return {
        name: ", ".join(f"{side} {shown(result[side].get(name, {}))}" for side in sides) for name in result["tuned"]
    }


def samples(folder: RunFolder) -> dict[str, str]:
    """The first generated answers on held-out rows, of base and tuned model, by the number of the row."""
    made: dict[str, str] = {}
    if folder.predictions.is_file():
        with folder.predictions.open(encoding="utf-8") as lines:
            for number, line in enumerate(map(json.loads, lines), 1):
                if "said" in line["tuned"] and len(made) < SAMPLES:
                    said = {"prompt": line["text"], "reference": line["answer"], "base": line["base"].get("said")}
                    said["tuned"] = line["tuned"]["said"]
                    made[f"row {number}"] = "\n\n".join(
                        f"{who}: {text}" for who, text in said.items() if text is not None
                    )
    return made


class Watch(Progress):
    """Starts the followers of a run, and reports what goes wrong in their threads in the thread that trains."""

    def __init__(self, followers: Sequence[Follower], run: Path, report: Progress) -> None:
        self.followers, self.run, self.report = [*followers], run, report

    def train_begins(self, start: int, steps: int) -> None:
        # Not earlier: tokenizing forks processes, which a thread that imports could leave with its locks.
        for follower in self.followers:
            follower.start()

    def record(self, line: Mapping[str, Any]) -> None:
        for follower in [*self.followers]:
            if trouble := self._trouble(follower):
                self.followers.remove(follower)
                self.report.warn(trouble)

    def _trouble(self, follower: Follower) -> str:
        """Why a tracker is left out; empty where all is well."""
        name, failure, busy = follower.key, follower.failure, follower.busy
        if failure is not None:
            why = redacted(f"{type(failure).__name__}: {first_line(failure)}")
            return f"the tracker {name} failed and is left out: {why}; {self._later(name)}"
        if busy is not None and time.monotonic() - busy > HANGS:
            return f"the tracker {name} has not answered for {HANGS:.0f} s and is left out; {self._later(name)}"
        return ""

    def _later(self, name: str) -> str:
        return f"what it lacks can be sent later: {shell_line('luthier', 'track', self.run, '--to', name)}"

    def end(self, state: State, error: str = "") -> None:
        """Let every tracker finish, and wait for each as long as its settings say."""
        self.record({})
        began, started = time.monotonic(), [each for each in self.followers if each.ident is not None]
        for follower in started:
            follower.end(state, error)
        for follower in started:
            follower.join(max(0.0, began + min(EVERY, follower.tracker.wait) - time.monotonic()))
            if follower.is_alive():
                self.report.stage(f"waiting for the tracker {follower.key}")
                follower.join(max(0.0, began + follower.tracker.wait - time.monotonic()))
            if follower.is_alive():
                self.followers.remove(follower)
                late = f"{follower.tracker.wait:.0f} s after the end of the run"
                self.report.warn(f"the tracker {follower.key} is not done {late}; {self._later(follower.key)}")
        self.record({})
        for follower in self.followers:
            if follower.shows:
                self.report.note(f"{follower.key}: {follower.shows}")


@contextmanager
def followed(folder: RunFolder, trackers: Mapping[str, Tracker], progress: Progress) -> Iterator[Progress]:
    """Within, the run in this folder is followed for trackers, by name; what happens is reported to what is yielded.

    InputError where trackers.json is damaged: before anything is trained.
    """
    if not trackers:
        yield progress
        return
    Notes(folder).read()
    watch = Watch([Follower(each, name, folder) for name, each in trackers.items()], folder.path, progress)
    try:
        yield Listeners(progress, Guarded("of the trackers", watch, progress))
    except (Stopped, KeyboardInterrupt):
        watch.end("stopped")
        raise
    except Exception as error:
        watch.end("failed", redacted(f"{type(error).__name__}: {first_line(error)}"))
        raise
    watch.end("finished")


def by_name(chosen: Sequence[Tracker], objects: Sequence[Tracker] = ()) -> dict[str, Tracker]:
    """The trackers of a recipe, each as an object for one run; and Python objects, by the names of their classes."""
    return {each.name: each.model_copy() for each in chosen} | {type(each).__name__: each for each in objects}


def track(
    given: str | os.PathLike[str], tracker: Tracker | None, *, again: bool = False, progress: Progress = SILENT
) -> dict[str, Any]:
    """Send a run that has ended to a tracker, or to those of its recipe; returns what trackers.json notes of them.

    A tracker that has the whole run gets nothing, unless `again` makes a second one there. InputError where the run has
    no step, where its recipe names no tracker, and where a tracker fails.
    """
    run = local(given, progress, small=True)
    folder = RunFolder.existing(run)
    chosen = by_name([tracker] if tracker is not None else read_recipe(folder).train.track)
    if not chosen:
        raise InputError(f"{run}: its recipe names no tracker", fix="--to swanlab, or another of luthier list trackers")
    for each in chosen.values():
        each.check()
    with folder.held():
        history, notes = folder.history(), Notes(folder)
        if not history:
            raise InputError(f"{run}: no step was taken yet, so there is nothing to send")
        state, error = _ended(folder, notes)
        last = max(map(place, history))
        end = [last.step, 2] if state == "finished" else [*last]
        for name, each in chosen.items():
            known = notes.known(name, each)
            if known and not again and known["state"] == state and [known["step"], known["part"]] == end:
                progress.note(f"{name} has the whole run already; --again sends it as a second one")
                continue
            if again:
                notes.begin(name, each)
            progress.stage(f"sending {last.step} steps to {name}")
            follower = Follower(each, name, folder)
            follower.end(state, error)
            follower.run()
            if follower.failure is not None:
                why = redacted(f"{type(follower.failure).__name__}: {first_line(follower.failure)}")
                raise InputError(f"the tracker {name} failed: {why}") from follower.failure
            if follower.shows:
                progress.note(f"{name}: {follower.shows}")
        return {name: entry for name, entry in notes.read().items() if name in chosen}


def _ended(folder: RunFolder, notes: Notes) -> tuple[State, str]:
    """How a run ended, and with which error. Nobody notes how a process was killed, so that is a stopped run."""
    if folder.result.is_file():
        return "finished", ""
    failed = [entry["error"] for entry in notes.read().values() if entry["state"] == "failed"]
    return ("failed", failed[0]) if failed else ("stopped", "")
