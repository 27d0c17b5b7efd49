"""What is called apart gives what it gives, in a thread that is gone after it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.events import Progress
from luthier.kernels.process import SPINS, call_apart
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


STARTED = """
import os, sys
import luthier.cli.main as cli
def app(*arguments, **options):
    assert "torch" not in sys.modules  # OpenMP reads its settings when torch is imported
    print(os.environ.get("GOMP_SPINCOUNT"))
cli.app = app
cli.main()
"""


@pytest.mark.parametrize(
    ("given", "found"), [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_idle_workers_of_a_command_sleep_soon_unless_told_otherwise(given: dict[str, str], found: str) -> None:
    clean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    made = subprocess.run(
        [sys.executable, "-c", STARTED], capture_output=True, text=True, env=clean | given, check=True
    )
    assert made.stdout.split() == [found]


def test_the_engine_loads_apart(model_folder: Callable[..., Path]) -> None:
    seen = []

    class Listener(Progress):
        def stage(self, text: str) -> None:
            seen.append(threading.current_thread())

    Engine.open([str(model_folder())], progress=Listener()).close()
    assert len(seen) == 1 and seen[0] is not threading.main_thread() and not seen[0].is_alive()
