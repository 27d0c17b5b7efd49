"""How a tracker is fed: in order, each step once, and never at the cost of the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr

from luthier.core.errors import ConfigError, InputError, MissingExtra, Stopped
from luthier.core.events import Progress
from luthier.core.files import write_json
from luthier.pipeline import track as module
from luthier.pipeline.prepare import on_this_machine
from luthier.pipeline.track import (
    Follower,
    Notes,
    flat,
    followed,
    samples,
    scores_as_text,
    summary_of,
    track,
)
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from luthier.runs.state import MetricsReader
from luthier.tracking.base import START, Position, State, TrackedRun, Tracker


class Memory(Tracker):
    """Keeps what it gets; `trouble` names the call that fails or hangs."""

    trouble: str = ""
    _log: list[tuple[int, dict[str, float]]] = PrivateAttr(default_factory=list)
    _said: list[Any] = PrivateAttr(default_factory=list)
    _there: Position | None = None
    _hangs: threading.Event = PrivateAttr(default_factory=threading.Event)

    def _call(self, name: str) -> None:
        if self.trouble == name:
            raise ConnectionError(f"no answer to {name}\nmore")
        if self.trouble == f"{name} hangs":
            self._hangs.wait(60)

    def begin(self, run: TrackedRun) -> Position | None:
        self._call("begin")
        self._said.append(run)
        return self._there

    def log(self, step: int, values: Mapping[str, float], time: float | None = None) -> None:
        self._call("log")
        self._log.append((step, dict(values)))

    def flush(self) -> None:
        self._call("flush")

    def texts(self, step: int, name: str, texts: Mapping[str, str]) -> None:
        self._said.append((name, texts))

    def image(self, step: int, name: str, file: Path) -> None:
        self._said.append((name, file.read_bytes()))

    def page(self, step: int, name: str, file: Path) -> None:
        self._said.append((name, file.read_text()))

    def command(self, run: TrackedRun) -> str:
        return f"show {run.name}"

    def finish(self, state: State, error: str) -> None:
        self._call("finish")
        self._said.append((state, error))

    @property
    def steps(self) -> list[int]:
        return [step for step, values in self._log if "train/loss" in values]


class Heard(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)

    note = warn


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder as it is before the first step."""
    found = RunFolder(tmp_path / "run")
    found.path.mkdir()
    found.recipe.write_text(RunConfig.load(None, ["model=builtin", "data=a.jsonl", "train.lr=1e-3"]).dump())
    found.environment.write_text(json.dumps({"python": "3.11", "packages": {"torch": "2"}, "base": {"secret": "hash"}}))
    return found


def take(folder: RunFolder, *steps: int, every: int = 5) -> None:
    """Write the lines of these steps, with an evaluation behind each fifth."""
    for step in steps:
        line = {"step": step, "loss": 1 / step, "lr": 1e-3, "grad_norm": None, "tokens": 10, "seconds": 0.5}
        folder.log({**line, "memory": 2e9, "time": 1e9 + step})
        if step % every == 0:
            folder.log({"step": step, "validation_loss": 2 / step, "seconds": 0.1, "time": 1e9 + step})


def finish(folder: RunFolder) -> None:
    """Write what a finished run has."""
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    sides = {"base": {"accuracy": {**score, "value": 0.45}}, "tuned": {"accuracy": score}}
    result = {**sides, "difference": {"accuracy": {"value": 0.05, "low": -0.1, "high": 0.2}}, "tokens": 100}
    answer = {"text": "2 + 2?", "answer": "4", "base": {"said": "five"}, "tuned": {"said": "4"}}
    folder.predictions.write_text(json.dumps(answer) + "\n" + json.dumps({**answer, "tuned": {}}) + "\n")
    folder.loss_png.write_bytes(b"PNG")
    folder.report.write_text("<html>")
    write_json(folder.result, result)


def sent(folder: RunFolder, tracker: Memory, state: State | None = "finished", name: str = "memory") -> Follower:
    follower = Follower(tracker, name, folder)
    if state:
        follower.end(state)
    follower.run()
    return follower


def test_a_whole_run_in_order_and_each_step_once(folder: RunFolder) -> None:
    take(folder, *range(1, 11))
    finish(folder)
    tracker = Memory()
    follower = sent(folder, tracker)
    assert follower.failure is None and tracker.steps == [*range(1, 11)]
    run = tracker._said[0]
    assert (run.name, run.resumed, len(run.id)) == ("run", False, 16)
    assert run.config["train.lr"] == 1e-3 and run.config["environment.packages.torch"] == "2"
    assert not any("secret" in key for key in run.config)
    first, evaluation = (
        dict(tracker._log[0][1]),
        next(values for step, values in tracker._log if step == 5 and len(values) == 1),
    )
    assert first == {
        "train/loss": 1.0,
        "train/learning_rate": 1e-3,
        "memory/process_gb": 2.0,
        "train/tokens_per_second": 20.0,
    }, "a gradient norm that is no number is left out"
    assert evaluation == {"validation/loss": 0.4}
    assert tracker._log[-1] == (10, {"base/accuracy": 0.45, "tuned/accuracy": 0.5})
    said = dict(tracker._said[1:])
    assert said["samples"] == {"row 1": "prompt: 2 + 2?\n\nreference: 4\n\nbase: five\n\ntuned: 4"}
    assert said["scores"] == {
        "accuracy": "base 0.45 (0.4 to 0.6), tuned 0.5 (0.4 to 0.6), difference 0.05 (-0.1 to 0.2)"
    }
    assert said["loss"] == b"PNG" and said["report"] == "<html>" and said["finished"] == ""
    assert Notes(folder).read()["memory"] == {
        "id": run.id,
        "settings": {"project": "luthier", "trouble": ""},
        "step": 10,
        "part": 2,
        "state": "finished",
        "error": "",
    }


def test_a_run_that_is_resumed_goes_on_behind_the_last_step_sent(folder: RunFolder) -> None:
    take(folder, *range(1, 9))
    first = Memory()
    sent(folder, first, "stopped")
    assert Notes(folder).read()["memory"]["step"] == 8
    folder.rewind(5)
    take(folder, *range(6, 11))
    finish(folder)
    second = Memory()
    sent(folder, second)
    assert first.steps + second.steps == [*range(1, 11)]
    assert [step for step, values in first._log + second._log if "validation/loss" in values] == [5, 10]
    assert second._said[0].resumed and second._said[0].id == first._said[0].id


@pytest.mark.parametrize(("there", "steps"), [(START, [*range(1, 9)]), (Position(6, 0), [7, 8])])
def test_a_tracker_that_knows_what_it_has_is_believed(folder: RunFolder, there: Position, steps: list[int]) -> None:
    take(folder, *range(1, 9))
    sent(folder, Memory(), "stopped")
    tracker = Memory()
    tracker._there = there
    sent(folder, tracker, "stopped")
    assert tracker.steps == steps


def test_another_place_is_another_run_in_the_tracker(folder: RunFolder) -> None:
    take(folder, 1, 2, 3)
    first, other = Memory(), Memory(project="elsewhere")
    for tracker in (first, other):
        sent(folder, tracker, "stopped")
    assert other.steps == [1, 2, 3] and not other._said[0].resumed and other._said[0].id != first._said[0].id


def test_several_trackers_share_a_file_of_notes(folder: RunFolder) -> None:
    take(folder, *range(1, 20))
    followers = [Follower(Memory(), f"memory-{number}", folder) for number in range(8)]
    for follower in followers:
        follower.end("stopped")
        follower.start()
    for follower in followers:
        follower.join()
    assert [follower.failure for follower in followers] == [None] * 8
    assert [entry["step"] for entry in Notes(folder).read().values()] == [19] * 8


def test_a_step_counts_as_sent_when_it_is_stored(folder: RunFolder) -> None:
    take(folder, 1, 2, 3)
    failing = sent(folder, Memory(trouble="flush"), "stopped")
    assert isinstance(failing.failure, ConnectionError)
    assert Notes(folder).read()["memory"]["step"] == 0
    tracker = Memory()
    sent(folder, tracker, "stopped")
    assert tracker.steps == [1, 2, 3]


def test_steps_are_sent_while_the_run_goes_on(folder: RunFolder) -> None:
    tracker = Memory()
    follower = Follower(tracker, "memory", folder)
    follower.start()
    for upto in (3, 6):
        take(folder, *range(upto - 2, upto + 1))
        for _ in range(2000):
            if tracker.steps and tracker.steps[-1] == upto:
                break
            threading.Event().wait(0.005)
        assert tracker.steps == [*range(1, upto + 1)]
    follower.end("stopped")
    follower.join()
    assert tracker._said[-1] == ("stopped", "")


def test_a_run_without_a_step_leaves_nothing_in_a_tracker(folder: RunFolder) -> None:
    tracker = Memory()
    assert sent(folder, tracker, "failed").failure is None
    assert tracker._said == [] and not folder.trackers.exists()


def test_lines_that_are_cut_damaged_or_replaced(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = MetricsReader(file)
    assert lines.new() == []
    file.write_text('{"step": 1}\nnothing\n[1]\n{"step": 2}\n{"step"')
    assert [line["step"] for line in lines.new()] == [1, 2]
    with file.open("a") as more:
        more.write(": 3}\n")
    assert [line["step"] for line in lines.new()] == [3]
    (tmp_path / "new").write_text('{"step": 1}\n{"step": 2}\n{"step": 30}\n{"step": 40}\n')
    (tmp_path / "new").replace(file)
    assert [line["step"] for line in lines.new()] == [1, 2, 30, 40], "it is read from the start again"


def follow(folder: RunFolder, tracker: Memory, work: Callable[[Progress], None] | None = None) -> tuple[list[str], int]:
    """Take ten steps as the trainer does; returns what was reported, and the steps that were taken."""
    heard, taken = Heard(), 0
    with followed(folder, {"memory": tracker}, heard) as progress:
        progress.train_begins(0, 10)
        for step in range(1, 11):
            take(folder, step)
            progress.record({})
            taken += 1
            threading.Event().wait(0.02)
        if work:
            work(progress)
        finish(folder)
    return heard.said, taken


@pytest.mark.parametrize("call", ["begin", "log", "flush", "finish"])
def test_a_tracker_that_fails_is_reported_once_and_the_run_goes_on(folder: RunFolder, call: str) -> None:
    said, taken = follow(folder, Memory(trouble=call))
    assert taken == 10
    assert said == [
        f"the tracker memory failed and is left out: ConnectionError: no answer to {call}; "
        f"what it lacks can be sent later: luthier track {folder.path} --to memory"
    ]
    assert Notes(folder).read()["memory"]["state"] in ("begun", "running")


def test_a_tracker_that_hangs_is_reported_and_not_waited_for(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANGS", 0.05)
    tracker = Memory(trouble="log hangs", wait=50)
    said, taken = follow(folder, tracker)
    assert taken == 10 and len(said) == 1 and "has not answered for" in said[0]
    tracker._hangs.set()


def test_a_tracker_that_is_slow_at_the_end_is_waited_for_only_so_long(folder: RunFolder) -> None:
    tracker = Memory(trouble="finish hangs", wait=0.1)
    said, _ = follow(folder, tracker)
    assert len(said) == 1 and "is not done 0 s after the end of the run" in said[0]
    tracker._hangs.set()


def test_a_run_that_stops_or_fails_is_marked_so(folder: RunFolder) -> None:
    def stop(_: Progress) -> None:
        raise Stopped("stopped at step 10", 143)

    def fail(_: Progress) -> None:
        raise InputError("step 10 left NaN weights of https://me:secret@host")

    stopped, failed = Memory(), Memory()
    with pytest.raises(Stopped):
        follow(folder, stopped, stop)
    assert stopped.steps == [*range(1, 11)] and stopped._said[-1] == ("stopped", "")
    folder.metrics.unlink()
    with pytest.raises(InputError):
        follow(folder, failed, fail)
    assert failed._said[-1] == ("failed", "InputError: step 10 left NaN weights of https://***@host")
    assert track(folder.path, Memory())[Memory.name]["state"] == "failed", "other trackers are told so, too"


def test_a_damaged_file_of_notes_is_reported_before_anything_is_trained(folder: RunFolder) -> None:
    folder.trackers.write_text('{"memory": 1}')
    with pytest.raises(InputError, match=r"the entry 'memory' is damaged\n  fix: rm "):
        follow(folder, Memory())
    assert not folder.metrics.exists()


def test_a_run_is_sent_twice_only_on_demand(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    trackers: list[Memory] = []

    def copy(self: Memory) -> Memory:
        trackers.append(Memory())
        return trackers[-1]

    monkeypatch.setattr(Memory, "model_copy", copy)
    with pytest.raises(InputError, match="no step was taken"):
        track(folder.path, Memory())
    take(folder, *range(1, 6))
    name = Memory.name
    assert track(folder.path, Memory())[name] | {"id": ""} == {
        "id": "",
        "settings": {"project": "luthier", "trouble": ""},
        "step": 5,
        "part": 1,
        "state": "stopped",
        "error": "",
    }
    heard = Heard()
    before = track(folder.path, Memory(), progress=heard)
    assert heard.said == [f"{name} has the whole run already; --again sends it as a second one"]
    assert [each.steps for each in trackers[1:]] == [[1, 2, 3, 4, 5], []]
    finish(folder)
    assert track(folder.path, Memory())[name]["state"] == "finished"
    assert trackers[-1].steps == [], "only the result was missing"
    assert track(folder.path, Memory(), again=True)[name]["id"] != before[name]["id"]
    assert trackers[-1].steps == [1, 2, 3, 4, 5] and len(trackers[-1]._said) > 3
    with pytest.raises(InputError, match="its recipe names no tracker"):
        track(folder.path, None)


def test_a_tracker_whose_package_is_missing_is_an_error_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("luthier.tracking.base.find_spec", lambda name: None)
    config = RunConfig.load(None, ["model=builtin", "data=not-there.jsonl", "train.track=[swanlab]"])
    with pytest.raises(MissingExtra, match=r"the tracker swanlab needs swanlab, .*\n  fix: .*swanlab\[dashboard\]"):
        on_this_machine(config)


def test_trackers_in_a_recipe() -> None:
    def names(*given: str) -> list[str]:
        return [each.name for each in RunConfig.load(None, ["model=builtin", "data=a.jsonl", *given]).train.track]

    assert names() == names("train.track=[]") == names("train.report_to=none") == names("train.listeners=[]") == []
    assert names("train.track=swanlab") == names("train.report_to=swanlab") == ["swanlab"]
    assert names("train.track=[{name: swanlab, project: x}, tensorboard]") == ["swanlab", "tensorboard"]
    for wrong, why in (
        ("[swanlab, swanlab]", "swanlab is named twice"),
        ("[swanlap]", "did you mean 'swanlab'"),
        ("[{name: wandb, api_key: 0123456789abcdef}]", "api_key"),
        ("[{name: swanlab, wait: -1}]", "wait"),
    ):
        with pytest.raises(ConfigError) as caught:
            names(f"train.track={wrong}")
        assert why in str(caught.value) and "0123456789abcdef" not in str(caught.value)


def test_nothing_secret_and_no_folder_reaches_a_tracker(tmp_path: Path) -> None:
    given = {
        "data": {"path": str(tmp_path / "rows.jsonl"), "url": "https://me:pass@host/x"},
        "none": None,
        "list": [1, 2],
    }
    assert flat(given) == {"data.path": "rows.jsonl", "data.url": "https://***@host/x", "list": "1 2"}


def test_a_run_without_held_out_rows_has_no_scores(folder: RunFolder) -> None:
    result: dict[str, Any] = {"base": {}, "tuned": {}, "difference": {}, "tokens": 3}
    assert summary_of(result) == {"total/tokens": 3} and scores_as_text(result) == samples(folder) == {}
