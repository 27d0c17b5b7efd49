"""A function mapped over many pieces in parallel processes, in order."""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from luthier.core.errors import InputError
from luthier.core.signals import end_with_parent

Piece = TypeVar("Piece")
Made = TypeVar("Made")


def in_order(work: Callable[[Piece], Made], pieces: Iterable[Piece], workers: int) -> Iterator[Made]:
    """`work` of each piece, in order; with one worker in this process. Only a few pieces wait at a time."""
    if workers == 1:
        yield from map(work, pieces)
        return
    # fork where it is safe: spawn imports the user's script again, which would run it twice where it has no main
    # guard, and takes seconds to load a tokenizer. A worker does not use torch.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, _prepare, (work,)) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for piece in pieces:
                waiting.append(_submitted(pool, piece))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            why = "a process that tokenizes was killed, most often because memory ran out"
            raise InputError(why, fix="data.workers=1") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, piece: Any) -> Future[Any]:
    """Submit a piece; the first one forks the workers. Ctrl-C waits meanwhile: Python drops an exception in a fork."""
    if sys.platform == "win32":
        return pool.submit(_work, piece)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_work, piece)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_job: Callable[[Any], Any]


def _prepare(work: Callable[[Any], Any]) -> None:
    global _job  # noqa: PLW0603 (one job per worker process)
    _job = work
    end_with_parent()  # the queue of the pool would keep it waiting forever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork, and the processors are ours


def _work(piece: Any) -> Any:
    return _job(piece)
