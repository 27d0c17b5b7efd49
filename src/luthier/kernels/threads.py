"""One thread computes: a second one with OpenMP workers of its own slows both, though it only waits.

GNU's OpenMP, which torch has on Linux, gives each thread that computes a team of workers for as long as that thread
lives. Where all teams together have more threads than there are processors, workers no longer wait awake for the next
piece of work but go to sleep after each, and to wake them costs as much as the piece: there are hundreds in a step of a
model. A process that loads in its main thread and computes in another is such a case.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

SPINS = "2000"
"""Turns that a worker waits awake: some tens of microseconds, the time between two products of a step."""


def sleep_soon() -> None:
    """Let idle workers of OpenMP sleep soon, not after milliseconds. Call it before torch is imported.

    Waiting awake gains little; where other work wants the processors it halves the speed, for such a thread keeps its
    processor from the one that it waits for. A setting in the environment stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def call_apart(make: Callable[[], T]) -> T:
    """What `make` returns or raises, called in a thread that ends with it, and its workers too."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(make())
        except BaseException as error:  # the caller's to handle, whatever it is
            future.set_exception(error)

    thread = Thread(target=work, daemon=True, name="luthier-apart")
    thread.start()
    thread.join()
    return future.result()
