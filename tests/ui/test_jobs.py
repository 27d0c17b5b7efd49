"""The queue: one run after another, whatever becomes of the server that started them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.errors import Busy
from luthier.ui import jobs as module
from luthier.ui.jobs import Jobs, NoJob, QueuedJob

LIMIT = 30.0


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of luthier: appends its name to a file, waits for another file, and ends with the code in it."""
    path = tmp_path / "program.py"
    path.write_text(
        "import pathlib, sys, time, signal\n"
        "code, name = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "here = pathlib.Path(__file__).parent\n"
        "def end(*_):\n    code.write_text('75'); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('hello from', name, flush=True)\n"
        "(here / f'{name}.began').touch()\n"
        "while not (here / f'{name}.go').exists():\n    time.sleep(0.02)\n"
        "code.write_text((here / f'{name}.go').read_text() or '0')\n"
    )
    honest = module.subprocess.Popen

    def popen(command: list[str], **options: object) -> object:
        return honest([sys.executable, str(path), *command[3:]], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(module.subprocess, "Popen", popen)
    return tmp_path


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def state(jobs: Jobs, job: QueuedJob) -> str:
    jobs.tick()
    return jobs.get(job.id).state


def test_runs_follow_one_another_and_other_work_does_not_wait(program: Path) -> None:
    jobs = Jobs(program / "runs")
    first, second = jobs.add("train", "a", ["one"]), jobs.add("train", "b", ["two"])
    beside = jobs.add("export", "c", ["three"])
    until(lambda: (program / "one.began").exists() and (program / "three.began").exists())
    assert (state(jobs, first), state(jobs, second), state(jobs, beside)) == ("running", "waiting", "running")
    assert not (program / "two.began").exists()
    (program / "one.go").touch()
    until(lambda: state(jobs, first) == "done" and state(jobs, second) == "running")
    assert "hello from one" in jobs.output(jobs.get(first.id))
    (program / "two.go").write_text("2")
    (program / "three.go").touch()
    until(lambda: state(jobs, second) == "failed" and state(jobs, beside) == "done")
    assert jobs.get(second.id).code == 2
    jobs.close()


def test_the_next_one_can_be_chosen_and_a_waiting_one_taken_out(program: Path) -> None:
    jobs = Jobs(program / "runs")
    running, out, last, chosen = (jobs.add("train", name, [name]) for name in ("a", "b", "c", "d"))
    jobs.stop(out.id)
    jobs.first(chosen.id)
    (program / "a.go").touch()
    until(lambda: state(jobs, chosen) == "running")
    assert (state(jobs, out), state(jobs, last), state(jobs, running)) == ("stopped", "waiting", "done")
    with pytest.raises(Busy):
        jobs.forget(last.id)
    jobs.forget(out.id)
    with pytest.raises(NoJob):
        jobs.get(out.id)
    jobs.stop(last.id)
    (program / "d.go").touch()
    until(lambda: state(jobs, chosen) == "done")
    jobs.close()


def test_stop_asks_the_process_and_is_no_failure(program: Path) -> None:
    jobs = Jobs(program / "runs")
    job = jobs.add("train", "a", ["one"])
    until((program / "one.began").exists)
    jobs.stop(job.id)
    until(lambda: state(jobs, job) == "stopped")
    assert jobs.get(job.id).code == 75
    jobs.close()


def test_another_server_finds_what_runs_and_goes_on_with_the_queue(program: Path) -> None:
    jobs = Jobs(program / "runs")
    first, second = jobs.add("train", "a", ["one"]), jobs.add("train", "b", ["two"])
    until((program / "one.began").exists)
    jobs.close()  # the server ends, the job does not
    again = Jobs(program / "runs")
    assert (state(again, first), state(again, second)) == ("running", "waiting")
    (program / "one.go").touch()
    jobs.children[first.id].wait()
    until(lambda: state(again, second) == "running")
    assert again.get(first.id).state == "done"
    (program / "two.go").touch()
    until(lambda: state(again, second) == "done")
    again.close()


def test_two_servers_start_a_job_once(program: Path) -> None:
    one, other = Jobs(program / "runs"), Jobs(program / "runs")
    job = one.add("train", "a", ["one"])
    next_ = other.add("train", "b", ["two"])
    assert (state(other, job), state(other, next_)) == ("running", "waiting")
    (program / "one.go").touch()
    until(lambda: state(one, next_) == "running")
    other.tick()
    assert list(one.children) == [next_.id] and not other.children
    (program / "two.go").touch()
    until(lambda: state(one, next_) == "done")
    one.close()


def test_a_killed_job_has_failed(program: Path) -> None:
    jobs = Jobs(program / "runs")
    job = jobs.add("train", "a", ["one"])
    until((program / "one.began").exists)
    os.kill(jobs.get(job.id).pid, signal.SIGKILL)
    until(lambda: state(jobs, job) == "failed")
    assert jobs.get(job.id).code is None
    jobs.close()


@pytest.mark.parametrize("name", ["../x", "", "a" * 16 + "/..", "zzzzzzzzzzzzzzzz"])
def test_ids_of_jobs_are_no_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(NoJob):
        Jobs(tmp_path).get(name)
