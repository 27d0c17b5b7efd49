"""A process that is killed takes those that it started with it: what they held is free for the same command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.runs.folder import RunFolder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="runs side by side need Linux")

PARENT = """
import os, signal, sys, time
from pathlib import Path
from luthier.comparison import workers
from luthier.data.parallel import in_order
from luthier.runs.folder import RunFolder

folder = Path(sys.argv[1])

def tokenize(number):
    (folder / f"pid-{os.getpid()}").touch()
    time.sleep(600)

def run(number):
    def job(send):
        with RunFolder(folder / f"run-{number}").held():
            (folder / f"pid-{os.getpid()}").touch()
            list(in_order(tokenize, range(2), workers=2))  # workers of a run are grandchildren
    return job

list(workers.run_jobs([run(0), run(1)], workers=2, threads=1, fork=True))
"""
"""Two runs, each with two workers: six processes below this one, that end by themselves in ten minutes."""


def kill_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("kill", [kill_process, kill_group])
def test_runs_and_their_workers_end_with_a_killed_parent(
    tmp_path: Path, kill: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], start_new_session=True)
    below: list[int] = []
    try:
        wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 6)
        below = [int(file.name.removeprefix("pid-")) for file in tmp_path.glob("pid-*")]
        kill(process)
        process.wait()
        wait_until(lambda: not any(map(lives, below)))
    finally:
        for pid in [process.pid, *below]:
            if lives(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    for number in range(2):
        with RunFolder(tmp_path / f"run-{number}").held():  # raises Busy while another process holds it
            pass


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to be in time"
        time.sleep(0.05)


def lives(pid: int) -> bool:
    """False of a process that has ended, also where nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
