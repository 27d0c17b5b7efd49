"""The same work on many pieces, in processes side by side, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from luthier.errors import InputError

Piece = TypeVar("Piece")
Made = TypeVar("Made")


def processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[Piece], Made], pieces: Iterable[Piece], workers: int) -> Iterator[Made]:
    """`work` of each piece, in order; with one worker in this process. At most a few pieces wait at a time."""
    if workers == 1:
        yield from map(work, pieces)
        return
    # fork where the system has it without harm: the others import the user's script anew, which would run it twice
    # where it has no main guard, and take seconds to load a tokenizer. A worker runs no torch.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, _prepare, (work, os.getpid())) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for piece in pieces:
                waiting.append(pool.submit(_work, piece))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise InputError(
                "a process that tokenizes was killed, most often because memory ran out", mend="data.workers=1"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_job: Callable[[Any], Any]


def _prepare(work: Callable[[Any], Any], parent: int) -> None:
    global _job  # noqa: PLW0603 (one job per worker process)
    _job = work
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork, and the processors are ours


def _die_with(parent: int) -> None:
    """End this worker when its parent was killed: the pool's queue would keep it waiting for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(piece: Any) -> Any:
    return _job(piece)
