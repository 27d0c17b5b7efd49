"""What is called apart gives what it gives, in a thread that is gone after it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from luthier.core.events import Progress
from luthier.kernels import process
from luthier.kernels.process import call_apart
from luthier.serving.engine.engine import Engine


def test_it_gives_the_result_and_the_thread_ends() -> None:
    made = call_apart(threading.current_thread)
    assert made is not threading.current_thread() and not made.is_alive()


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_it_raises_what_was_raised(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as found:
        call_apart(fail)
    assert found.value is error


TRIAL = """
import os, time, torch
from luthier.core.events import Progress
from luthier.kernels.process import call_apart
threads = lambda: len(os.listdir("/proc/self/task"))
def compute():
    torch.set_num_threads(3)
    torch.ones(2**22).add_(1.0)
    return threads()
within = call_apart(compute)
end = time.monotonic() + 30
while threads() > within - 3 and time.monotonic() < end:
    time.sleep(0.01)
print(within, threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads of a process are listed by Linux")
def test_workers_of_torch_end_with_the_thread() -> None:
    """Those of the thread that loads would make those of the thread that answers sleep after each product."""
    made = subprocess.run([sys.executable, "-c", TRIAL], capture_output=True, text=True, check=True)
    within, after = map(int, made.stdout.split())
    assert within >= after + 3, made.stdout  # the thread and two workers


ASIDE = """
import os, time, torch
from luthier.kernels import process
os.sched_setaffinity(0, range(os.cpu_count()))  # who started it may have stepped aside itself
torch.set_num_threads(2)
torch.ones(2**22).add_(1.0)
whole = os.sched_getaffinity(0)
process._confine(1, dict.fromkeys(whole, 0.5))
assert process.processors() == len(whole)
kept = {len(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")}
crowds = len(process._crowd)
if (child := os.fork()) == 0:
    os._exit(len(process._crowd) + len(whole - os.sched_getaffinity(0)))
child = os.waitpid(child, 0)[1]
print(crowds, *kept, child, len(process._crowd), len(whole - os.sched_getaffinity(0)))
"""


@pytest.mark.skipif(sys.platform != "linux" or os.cpu_count() == 1, reason="GNU's OpenMP with two workers")
def test_a_process_steps_aside_and_no_fork_inherits_it() -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    made = subprocess.run([sys.executable, "-c", ASIDE], capture_output=True, text=True, env=clean, check=True)
    assert made.stdout.split() == ["1", "1", "0", "0", "0"]


def test_it_steps_aside_while_one_of_its_threads_waits_and_the_others_processors_are_not_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet, many = process.CALM_LOOKS, process.CALM_LOOKS - 1
    # (share that thread 2 waits, share of processor 1 that is free), and whether it has stepped aside after that look.
    shares = [((0.1, 0.0), 0), ((0.5, 0.0), 1), *[((0.5, 1.0), 1)] * many, ((0.5, 0.5), 1), *[((0.5, 1.0), 1)] * many]
    shares += [((0.5, 1.0), 0), ((0.0, 1.0), 0)]
    assert len(shares) > 2 * quiet
    looks, ran, waited, free = [process._Look(0.0, {"1": (0.0, 0.0), "2": (0.0, 0.0)}, {0: 0.0, 1: 0.0})], 0.0, 0.0, 0.0
    for (waits, idle), _ in shares:
        ran, waited, free = ran + 1.0 - waits, waited + waits, free + idle
        threads = {"1": (float(len(looks)), 0.0), "2": (ran, waited), f"{len(looks)} is new": (9.0, 9.0)}
        looks.append(process._Look(float(len(looks)), threads, {0: 0.0, 1: free}))
    coming = iter(looks)
    confined: list[set[int]] = []
    seen: list[int] = []
    monkeypatch.setattr(process, "_look", lambda: next(coming))
    monkeypatch.setattr(process, "_confined", confined)
    monkeypatch.setattr(process, "_confine", lambda count, free: confined.extend([{0, 1}, {*range(count)}]))
    monkeypatch.setattr(process, "_spread", confined.clear)
    monkeypatch.setattr("luthier.kernels.process.time.sleep", lambda seconds: seen.append(len(confined) // 2))
    with pytest.raises(StopIteration):
        process._watch()
    assert seen[1:] == [after for _, after in shares]


def test_a_model_that_is_loaded_is_watched_unless_the_user_chose(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    thread = SimpleNamespace(start=lambda: started.append("one"))
    with monkeypatch.context() as patch:
        patch.setattr(process, "Thread", lambda **options: thread)
        patch.setattr(process, "_watched", [])
        patch.setenv("OMP_WAIT_POLICY", "passive")
        process.share_processors()
        assert not started
        patch.delenv("OMP_WAIT_POLICY")
        process.share_processors()
        process.share_processors()
        assert started == ["one"], "one in a process"
    called: list[str] = []
    monkeypatch.setattr("luthier.models.load.share_processors", lambda: called.append("load"))
    Engine.open([str(model_folder())]).close()
    assert called


def test_the_engine_loads_apart(model_folder: Callable[..., Path]) -> None:
    seen = []

    class Listener(Progress):
        def stage(self, text: str) -> None:
            seen.append(threading.current_thread())

    Engine.open([str(model_folder())], progress=Listener()).close()
    assert len(seen) == 1 and seen[0] is not threading.main_thread() and not seen[0].is_alive()
