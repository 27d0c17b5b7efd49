"""Freed memory and idle threads of a process: with the defaults of Linux, both cost more than the arithmetic.

glibc unmaps each large block as soon as it is freed, and every page of the next one, mostly of the same size, is a page
fault. GNU's OpenMP gives each thread that computes a team of workers, which wait awake for the next piece of work. That
is twice as fast as sleeping, but beside other work it takes the processor from the threads that are waited for. By its
manual (GOMP_SPINCOUNT) they sleep after 100 turns once they are more than the processors, those of all threads counted:
so a thread that loads slows down one that computes, and a crowd that does nothing sends all others to sleep.
"""

import ctypes
import gc
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from threading import Event, Lock, Thread
from typing import TypeVar

T = TypeVar("T")

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)
WATCH_SECONDS = 0.25
"""Between two looks, on average."""
BUSY_SHARE = 0.2
"""Share of its time that a thread must want to run to be one of those that compute."""
WAITED_SHARE = 0.3
"""Share of that in which one of them waits for a processor, beyond which all get on better with half as many."""
FREE_SHARE, CALM_LOOKS = 0.7, 8
"""Share of the other processors that must be free, and in how many looks, before they are used again."""


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


def processors() -> int:
    """How many processors this process may use, those that it leaves to others included."""
    mine = _confined[0] if _confined else os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return len(mine or range(os.cpu_count() or 1))


def share_processors() -> None:
    """From now on step aside while others want the processors: decided by itself, and undone when they have gone.

    A thread watches for how long threads that compute wait for a processor. Where that is much, all threads get half as
    many processors as they are, the freest ones, and idle workers sleep at once: they take turns within microseconds,
    where they would wait for one another's next slice of time. Results do not depend on it. Nothing changes with one
    thread, without Linux and GNU's OpenMP, or where OMP_WAIT_POLICY or OMP_PROC_BIND is set. Further calls do nothing.
    """
    chosen = {"OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY"} & os.environ.keys()
    if Path("/proc/self/schedstat").exists() and not chosen and _watched[-1:] != [os.getpid()]:
        _watched.append(os.getpid())
        Thread(target=_watch, daemon=True, name="luthier-processors").start()


_dice = Random()
"""Two processes should not move at the same time; a run's own random state is left alone."""
_watched: list[int] = []
"""Processes that have a thread that watches: this one and those it was forked from."""
_confined: list[set[int]] = []
"""The processors of this process and, of these, those it confines itself to; empty while it does not."""
_crowd: list[tuple[Event, Thread]] = []
"""The thread whose workers are as many as the processors, and what ends it, while there is one."""
_lock = Lock()
"""Held while these two change, and through a fork."""


def _watch() -> None:
    look, calm = _look(), 0
    while True:
        time.sleep(WATCH_SECONDS * _dice.uniform(0.5, 1.5))
        last, look = look, _look()
        passed = look.at - last.at
        free = {each: (look.free[each] - last.free[each]) / passed for each in look.free.keys() & last.free.keys()}
        with _lock:
            if _confined:
                others = [free.get(each, 1.0) for each in _confined[0] - _confined[1]]
                calm = calm + 1 if min(others) > FREE_SHARE else 0
                if calm >= CALM_LOOKS:
                    _spread()
                continue
            calm, team = 0, []
            for thread in look.threads.keys() & last.threads.keys():
                ran, waited = (now - then for now, then in zip(look.threads[thread], last.threads[thread], strict=True))
                if ran + waited > BUSY_SHARE * passed:
                    team.append(waited / (ran + waited))
            if len(team) > 1 and max(team) > WAITED_SHARE:
                _confine((len(team) + 1) // 2, free)


@dataclass(frozen=True, slots=True)
class _Look:
    """What the system has counted so far, in seconds."""

    at: float
    threads: dict[str, tuple[float, float]]
    """For each thread of this process, how long it ran, and how long it waited for a processor."""
    free: dict[int, float]
    """For each processor, how long it was idle, or at work for processes that are nice to others."""


def _look() -> _Look:
    threads = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            ran, waited, _ = (task / "schedstat").read_text(encoding="ascii").split()
            threads[task.name] = int(ran) / 1e9, int(waited) / 1e9
    lines = [line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines()]
    ticks = {int(line[0][3:]): int(line[2]) + int(line[4]) for line in lines if re.fullmatch(r"cpu\d+", line[0])}
    rate = os.sysconf("SC_CLK_TCK")
    return _Look(time.monotonic(), threads, {each: count / rate for each, count in ticks.items()})


def _confine(count: int, free: Mapping[int, float]) -> None:
    """Keep to the `count` processors of which most is free, and let idle workers sleep."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    libraries = [ctypes.CDLL(path) for path in set(re.findall(r"/\S*/libgomp\S*\.so\S*", maps))]
    whole = os.sched_getaffinity(0)
    if not libraries or not count < len(whole) or not whole <= free.keys():
        return
    order = sorted(whole, key=lambda each: (-free[each], _dice.random()))
    _confined[:] = [whole, {*order[:count]}]
    _move(_confined[1])
    idle, leave = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p), Event()

    def stay() -> None:
        for library in libraries:  # torch's, and maybe scikit-learn's
            library.GOMP_parallel(idle, None, len(whole), 0)
        leave.wait()  # its workers live as long as it

    thread = Thread(target=stay, daemon=True, name="luthier-crowd")
    thread.start()
    _crowd.append((leave, thread))


def _spread() -> None:
    """Undo `_confine`, where it was called."""
    for leave, thread in _crowd:
        leave.set()
        thread.join()
    _crowd.clear()
    if _confined:
        _move(_confined[0])
        _confined.clear()


def _move(processors: set[int]) -> None:
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            os.sched_setaffinity(int(task.name), processors)


def _before_fork() -> None:
    _lock.acquire()
    _spread()  # a child would inherit the processors, and libgomp's count of threads


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release)


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
