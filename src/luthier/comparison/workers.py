"""Run jobs in processes of their own that begin with what this one has in memory: data, tokens, the base.

Processes are forked, so nothing is copied until it is written to, and a job that dies takes nothing with it. All end
with this process, however it ends. This process must not compute with several threads before: OpenMP's threads do not
survive a fork. On a GPU, and where a system has no safe fork, jobs run here, one after another.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from luthier.core.errors import LuthierError, Stopped
from luthier.core.signals import end_with_parent
from luthier.kernels.process import share_processors

Send = Callable[[dict[str, Any]], None]
Job = Callable[[Send], Any]


@dataclass(frozen=True, slots=True)
class Event:
    """A progress report of a job, or how the job ended."""

    job: int
    kind: str
    """progress, done, failed or stopped."""
    value: Any


def can_fork(device: str) -> bool:
    """Linux and a CPU: elsewhere forking after libraries have started threads is not safe."""
    return device == "cpu" and sys.platform.startswith("linux")


def run_jobs(jobs: Sequence[Job], *, workers: int, threads: int, fork: bool) -> Iterator[Event]:
    """Run up to `workers` jobs at a time and yield their events as they come.

    When the caller is interrupted or closes the iterator, running jobs get SIGTERM and are waited for: a run saves
    itself.
    """
    if not fork:
        yield from (Event(number, *outcome(job, lambda progress: None)) for number, job in enumerate(jobs))
        return
    running: dict[Connection, tuple[int, Any]] = {}
    waiting = list(enumerate(jobs))[::-1]
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                number, job = waiting.pop()
                receive, send = multiprocessing.Pipe(duplex=False)
                process = multiprocessing.get_context("fork").Process(target=_run, args=(job, threads, send))
                sys.stdout.flush()
                sys.stderr.flush()
                process.start()
                send.close()
                running[receive] = number, process
            ready: list[Any] = wait(list(running))
            for channel in ready:
                number, process = running[channel]
                try:
                    kind, value = channel.recv()
                except EOFError:
                    process.join()
                    kind, value = "failed", _death(process.exitcode)
                if kind != "progress":
                    process.join()
                    del running[channel]
                yield Event(number, kind, value)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _run(job: Job, threads: int, send: Connection) -> None:
    import torch

    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the parent's handlers are not ours
        signal.signal(number, signal.SIG_DFL)
    os.setpgrp()  # ctrl-C is for the parent, which asks us to stop once: a second signal would end us at once
    torch.set_num_threads(threads)
    share_processors()
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)  # notices of libraries, in the middle of the parent's bar
    send.send(outcome(job, lambda value: send.send(("progress", value))))
    send.close()


def outcome(job: Job, send: Send) -> tuple[str, Any]:
    """(done, failed or stopped; the result, why it failed, or the exit code)."""
    try:
        return "done", job(send)
    except Stopped as stop:
        return "stopped", stop.exit_code
    except LuthierError as error:
        return "failed", str(error).replace("\n", "; ")
    except KeyboardInterrupt:
        return "stopped", 75
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(last.filename)}:{last.lineno}"  # noqa: PTH119 (a name alone)
        return "failed", f"{type(error).__name__}: {error} ({where})"


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"the process was ended by {name}" + (": out of memory?" if name == "SIGKILL" else "")
    return f"the process ended with code {code} and no message"
