"""Freed memory and idle threads of a process: with the defaults of Linux, both cost more than the arithmetic.

glibc unmaps each large block as soon as it is freed, and every page of the next one, mostly of the same size, is a page
fault. GNU's OpenMP gives each thread that computes a team of workers; where these are more than the processors, each
sleeps after a piece of work, and to wake it costs as much: one thread that loads and another that computes are enough.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)
SPINS = "2000"
"""Turns that a worker waits awake: some tens of microseconds, the time between two products of a step."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, up to blocks of a GiB. False where the allocator is not glibc's."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # musl has none
            set_option = ctypes.CDLL(None).mallopt
            return bool(set_option(MMAP_THRESHOLD, 2**30)) and bool(set_option(TRIM_THRESHOLD, 2**31 - 1))
    return False


def give_back_freed_memory() -> None:
    """Return free memory to the system, once, after much was loaded and dropped: glibc keeps it in small holes."""
    gc.collect()
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # musl has none
            ctypes.CDLL(None).malloc_trim(0)


def sleep_soon() -> None:
    """Let idle workers of OpenMP sleep soon, for others may want the processors. Call it before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def call_apart(make: Callable[[], T]) -> T:
    """What `make` returns or raises, called in a thread that ends with it, and its workers too.

    An interrupt of the thread that waits is passed on, and raised here when `make` has ended by it.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(make())
        except BaseException as error:  # the caller's to handle, whatever it is
            future.set_exception(error)

    thread = Thread(target=work, daemon=True, name="luthier-apart")
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        ident = ctypes.c_ulong(thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(KeyboardInterrupt))
        thread.join()
        raise
    return future.result()
