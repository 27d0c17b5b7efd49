"""A signal stops a run behind the pass in hand, loses no whole step, and gives an exit code of its own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.soak import differences

from luthier.core.errors import Stopped
from luthier.core.signals import EXIT_CODES, Interrupted, watch
from luthier.data.stream import Stream
from luthier.rendering.row import Row
from luthier.tasks.chat import Chat
from tests.conftest import alpaca_rows, write_jsonl
from tests.processes import Command
from tests.reliability.conftest import LORA, Heard, Start, forked, status

CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGINT: 75}


class Passes:
    """Counts forward passes of training and of evaluation, and sends signals in the midst of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.train, self.measure = 0, 0
        self.at: dict[tuple[str, int], list[signal.Signals]] = {}
        losses = Chat.losses

        def counted(task: Any, model: Any, batch: Any) -> Any:
            if model.training:
                self.train += 1
            else:
                self.measure += 1
            now = ("train", self.train) if model.training else ("measure", self.measure)
            for number in self.at.get(now, []):
                os.kill(os.getpid(), number)
            return losses(task, model, batch)

        monkeypatch.setattr(Chat, "losses", counted)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    return Passes(monkeypatch)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("*"))


def test_the_codes_are_those_of_the_docs() -> None:
    assert EXIT_CODES == CODES


MANY = ["method.rank=2", "method.dropout=0.1", "train.micro_batch=1", "train.save_every=4"]


@pytest.mark.parametrize("number", CODES)
def test_in_a_step_of_many_passes_it_stops_behind_the_one_in_hand(
    number: signal.Signals, passes: Passes, start: Start, tmp_path: Path
) -> None:
    start(tmp_path / "whole", *MANY)
    assert passes.train == 8 * 4, "four passes a step"
    passes.train, passes.at = 0, {("train", 4 * 5 + 2): [number]}  # in the second pass of step 6
    with pytest.raises(Stopped, match="stopped at step 5 of 8; everything is saved") as stop:
        start(tmp_path / "run", *MANY)
    assert stop.value.exit_code == CODES[number]
    assert passes.train == 4 * 5 + 2, "not one pass more: the step is dropped"
    assert checkpoints(tmp_path / "run")[-1] == "step-000005"
    heard = Heard()
    start(tmp_path / "run", *MANY, progress=heard)
    assert "resuming from step 5 of 8" in heard.said and passes.train == 4 * 8 + 2
    (tmp_path / "whole" / "checkpoints" / "step-000005").mkdir()  # the one more that the stop left
    assert [d for d in differences(tmp_path / "whole", tmp_path / "run") if "step-000005" not in d] == []


def test_before_the_first_step_there_is_nothing_to_save(passes: Passes, start: Start, tmp_path: Path) -> None:
    passes.at = {("train", 1): [signal.SIGTERM]}
    with pytest.raises(Stopped, match="stopped at step 0 of 8"):
        start(tmp_path / "run", *MANY)
    assert checkpoints(tmp_path / "run") == []
    start(tmp_path / "run", *MANY)
    start(tmp_path / "whole", *MANY)
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_in_an_evaluation_between_steps(passes: Passes, start: Start, tmp_path: Path) -> None:
    own = [*LORA, "train.micro_batch=1", "train.batch_size=4", "data.validation=0.2"]
    start(tmp_path / "whole", *own)
    passes.train, passes.measure, passes.at = 0, 0, {("measure", 2): [signal.SIGUSR1]}
    with pytest.raises(Stopped, match="stopped at step 4 of 8") as stop:
        start(tmp_path / "run", *own)
    assert stop.value.exit_code == 138 and passes.measure == 2, "behind the batch in hand"
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-000004" / "state.json").read_text())
    assert state["unmeasured"]
    passes.train, passes.at = 0, {}
    start(tmp_path / "run", *own)
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_killed_between_the_evaluation_that_was_made_up_for_and_its_checkpoint(
    passes: Passes, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path / "whole", *LORA)
    passes.measure, passes.at = 0, {("measure", 1): [signal.SIGTERM]}
    with pytest.raises(Stopped):
        start(tmp_path / "run", *LORA)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def resumed() -> None:
        monkeypatch.setattr("luthier.training.checkpoint.write_checkpoint", lambda *_: die())
        passes.at = {}
        start(tmp_path / "run", *LORA)

    assert status(forked(resumed)) == -signal.SIGKILL
    assert "validation_loss" in (tmp_path / "run" / "metrics.jsonl").read_text(), "it was written down"
    passes.at = {}
    start(tmp_path / "run", *LORA)
    assert differences(tmp_path / "whole", tmp_path / "run") == [], "and is not written down twice"


def test_while_it_waits_for_rows_of_a_stream(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [
        "method.rank=2",
        "method.dropout=0.1",
        "data.streaming=true",
        "data.shuffle_buffer=4",
        "data.validation=none",
    ]
    start(tmp_path / "whole", *own)
    rows = Stream.rows

    def waiting(stream: Stream) -> Iterator[Row]:
        for number, row in enumerate(rows(stream), 1):
            if number == 4 * 5 + 2:  # the hub does not answer
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(600)
            yield row

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="stopped at step 5 of 8") as stop:
        patch.setattr(Stream, "rows", waiting)
        start(tmp_path / "run", *own)
    assert stop.value.exit_code == 143 and checkpoints(tmp_path / "run")[-1] == "step-000005"
    start(tmp_path / "run", *own)
    assert differences(tmp_path / "whole", tmp_path / "run") == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_in_an_evaluation_before_or_after_training(when: str, passes: Passes, start: Start, tmp_path: Path) -> None:
    own = [*LORA, "evaluate.before=true", "evaluate.batch_size=1", "data.validation=0.2"]
    start(tmp_path / "whole", *own)
    each = passes.measure
    passes.train, passes.measure = 0, 0
    passes.at = {("measure", 2 if when == "before" else each - 1): [signal.SIGTERM]}
    with pytest.raises(Stopped, match="everything that was trained is saved") as stop:
        start(tmp_path / "run", *own)
    assert stop.value.exit_code == 143 and passes.measure == (2 if when == "before" else each - 1)
    assert not (tmp_path / "run" / "result.json").exists() and (tmp_path / "run" / "recipe.yaml").exists()
    steps = passes.train
    passes.at = {}
    start(tmp_path / "run", *own)
    assert passes.train == steps + (0 if when == "after" else passes.train), "no step is taken twice"
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_a_second_signal_ends_at_once_and_the_run_still_goes_on_exactly(
    passes: Passes, start: Start, whole: Path, tmp_path: Path
) -> None:
    passes.at = {("train", 5): [signal.SIGTERM, signal.SIGINT]}
    with pytest.raises(Stopped) as stop:
        start(tmp_path / "run", *LORA)
    assert stop.value.exit_code == 143
    passes.at = {}
    start(tmp_path / "run", *LORA)
    assert differences(whole, tmp_path / "run") == []


def test_handlers_are_those_from_before_when_a_run_is_over(start: Start, tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in CODES}
    start(tmp_path / "run", "method.rank=2", "train.steps=1")
    assert {number: signal.getsignal(number) for number in CODES} == before


def test_a_worker_that_was_forked_dies_of_a_signal_as_workers_do() -> None:
    with watch() as request:
        pid = forked(lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert status(pid) == -signal.SIGTERM and not request.asked


def test_a_signal_while_nothing_is_trained_is_no_exception_that_libraries_catch() -> None:
    def library(call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            pytest.fail("taken for a failure")

    with watch() as request, pytest.raises(Interrupted):
        library(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert request.exit_code == 138


def slow_passes() -> None:
    losses = Chat.losses

    def slow(*given: Any) -> Any:
        print("PASS", flush=True)
        time.sleep(1)
        return losses(*given)

    Chat.losses = slow  # type: ignore[method-assign]


def test_the_command_line_stops_a_step_of_minutes_behind_its_first_pass(shelf: Path, tmp_path: Path) -> None:
    """A pass is made to sleep, so that the step of 64 passes would take a minute."""
    rows = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(64))
    arguments = [
        "train",
        f"model={shelf / 'model'}",
        f"data={rows}",
        f"run={tmp_path / 'run'}",
        "evaluate.before=false",
        "train.batch_size=64",
        "train.micro_batch=1",
        "data.validation=none",
    ]
    process = Command(arguments, before=slow_passes)
    process.wait_for(lambda: "PASS" in process.out)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(120) == 138, process.out + process.err
    said = process.out + process.err
    assert said.count("PASS") <= 2 and "everything is saved" in said and "Rerun the same command to resume" in said
