"""Work in processes of their own that begin with what this one has in memory: data, tokens, the base.

Forked, so nothing is copied until it is written to, and a run that dies takes nothing with it. Each has as many threads
as it is given, and all end with this process, however it ends. This process must not compute with several threads
itself before: OpenMP's do not live through a fork.
On a GPU, which cannot be shared like that, and where a system has no fork, work is done here, one after another.
"""

from __future__ import annotations

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

Send = Callable[[dict[str, Any]], None]
Job = Callable[[Send], Any]


@dataclass(frozen=True, slots=True)
class Event:
    """What a job said, or how it ended."""

    job: int
    kind: str
    """said, done, failed or stopped."""
    value: Any


def can_fork(device: str) -> bool:
    """Linux and a CPU: elsewhere forking after libraries have started threads is not safe."""
    return device == "cpu" and sys.platform.startswith("linux")


def work(jobs: Sequence[Job], *, workers: int, threads: int, fork: bool) -> Iterator[Event]:
    """Do the jobs, up to `workers` at a time, and tell what comes of them as it comes.

    When the caller is interrupted, or leaves, those at work get SIGTERM and are waited for: a run saves itself.
    """
    if not fork:
        yield from _here(jobs)
        return
    running: dict[Connection, tuple[int, Any]] = {}
    waiting = list(enumerate(jobs))[::-1]
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                number, job = waiting.pop()
                receive, process = _start(job, threads)
                running[receive] = number, process
            for ready in wait(list(running)):
                receive = ready  # type: ignore[assignment]
                number, process = running[receive]
                try:
                    kind, value = receive.recv()
                except EOFError:
                    process.join()
                    del running[receive]
                    yield Event(number, "failed", _death(process.exitcode))
                    continue
                if kind != "said":
                    process.join()
                    del running[receive]
                yield Event(number, kind, value)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _here(jobs: Sequence[Job]) -> Iterator[Event]:
    for number, job in enumerate(jobs):
        said: list[dict[str, Any]] = []
        kind, value = _end(job, said.append)
        yield from (Event(number, "said", each) for each in said)
        yield Event(number, kind, value)


def _start(job: Job, threads: int) -> tuple[Connection, Any]:
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(job, threads, send), daemon=False)
    sys.stdout.flush()
    sys.stderr.flush()
    process.start()
    send.close()
    return receive, process


def _run(job: Job, threads: int, send: Connection) -> None:
    import torch

    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the parent's handlers are not ours
        signal.signal(number, signal.SIG_DFL)
    os.setpgrp()  # ctrl-C is for the parent, which asks us to stop once: a second signal would end us at once
    torch.set_num_threads(threads)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)  # notices of libraries, in the middle of the parent's bar
    send.send(_end(job, lambda value: send.send(("said", value))))
    send.close()


def _end(job: Job, send: Send) -> tuple[str, Any]:
    try:
        return "done", job(send)
    except Stopped as stop:
        return "stopped", stop.exit_code
    except LuthierError as error:
        return "failed", str(error).replace("\n", "; ")
    except KeyboardInterrupt:
        return "stopped", 75
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error} ({_place(error)})"


def _place(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(last.filename)}:{last.lineno}"  # noqa: PTH119 (a name alone)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"the process was ended by {name}" + (": memory ran out?" if name == "SIGKILL" else "")
    return f"the process ended with code {code} and no word"
