"""What this machine has and how fast it is: free memory, matrix products, and everything else."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True, slots=True)
class Speed:
    """Rates measured here, in a fraction of a second."""

    products: float
    """Floating-point operations a second of a large matrix product."""
    moves: float
    """Bytes a second that a simple operation on a few hundred kilobytes reads and writes."""
    call: float
    """Seconds that an operation on almost nothing takes, called from Python under autograd."""


@dataclass(frozen=True, slots=True)
class TargetMachine:
    """The device that a run trains on, and its memory."""

    device: str
    """cuda or cpu."""
    memory: int
    """Bytes of the device."""
    free: int
    """Unused bytes of the device."""

    @property
    def room(self) -> int:
        """Usable bytes: a tenth of the free memory is left to other programs and to the error of the plan."""
        return int(0.9 * self.free)


@lru_cache
def speed(device: str, dtype: torch.dtype) -> Speed:
    """Speed of `dtype` on `device`, as if nothing else were running. Takes a third of a second or so."""
    wide, deep = torch.randn(1024, 1024, device=device).to(dtype), torch.randn(2048, 1024, device=device).to(dtype)
    some = torch.randn(128, 2048, device=device).to(dtype)
    few = torch.ones(4, device=device, requires_grad=True)
    return Speed(
        products=2 * 1024 * 1024 * 2048 / _seconds(lambda: torch.nn.functional.linear(wide, deep), device),
        moves=3 * some.numel() * some.element_size() / _seconds(lambda: some * some, device, BRIEF),
        call=_seconds(lambda: few * 2, device, BRIEF),
    )


BRIEF = 0.03
"""Seconds that an operation of microseconds is repeated; every run pays for this."""
CLOCK = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-6 else time.perf_counter
"""Time that this thread had a processor. Windows counts it in ticks too coarse for one call."""


def _seconds(work: Callable[[], object], device: str, lasting: float = 0.1) -> float:
    """Shortest of several calls of `work`: a machine is slower now and then, never faster than it is.

    On a CPU also of calls by one thread, in its own processor time. Where others compute as well, threads wait for one
    another at each operation, and a hundred times the seconds that the work takes were measured.
    """

    def shortest(clock: Callable[[], float]) -> float:
        work()
        best, end = float("inf"), time.monotonic() + lasting
        while time.monotonic() < end:
            wait()
            began = clock()
            work()
            wait()
            best = min(best, clock() - began)
        return best

    wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = shortest(time.perf_counter)
    if device == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            best = min(best, shortest(CLOCK))
        finally:
            torch.set_num_threads(threads)
    return best


def reading(size: int = 2**27) -> float:
    """Bytes a second that the processors read from memory: far more of them than a cache holds."""
    some = torch.ones(size // 4)
    return size / _seconds(some.sum, "cpu")


def this_machine(device: str) -> TargetMachine:
    """A device of this machine. What this process holds counts as used."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return TargetMachine(device, total, free)
    found = psutil.virtual_memory()
    return TargetMachine(device, int(found.total), int(found.available))


def used(device: str) -> int:
    """Bytes that this process uses on the device."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)


def watch_peak(device: str) -> None:
    """Start a new measurement of `peak`."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # Linux: 5 resets the high-water mark of this process
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int:
    """Peak bytes since `watch_peak`; where the system cannot reset it, since the process began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        found = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        return next(int(words[1]) * 1024 for words in found if words[0] == "VmHWM:")
    except (OSError, StopIteration):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
