"""Ctrl-C, SIGTERM and SIGUSR1 stop a run with everything saved; a second one ends it at once.

While steps are taken a signal is noted, and the trainer looks for it between micro-batches. Everywhere else only work
that the next start does again can be lost, so there it ends by an exception what is being done.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from luthier.core.errors import Stopped

EXIT_CODES = {signal.SIGINT: 75, signal.SIGTERM: 143}
"""What a process returns after which signal: 128 + its number, and for ctrl-C the code for `try again`."""
if hasattr(signal, "SIGUSR1"):  # not on Windows
    EXIT_CODES[signal.SIGUSR1] = 138
NOTED = EXIT_CODES[signal.SIGTERM]
"""The same where another process of the run was asked to stop."""


class Interrupted(KeyboardInterrupt):
    """A signal ends what is being done. No Exception, so that no library takes it for a failure of its own."""


class StopRequest:
    """Which signal asked for a stop, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.noting = False

    @property
    def exit_code(self) -> int:
        """What the process should return; 0 where no signal came."""
        return EXIT_CODES[self.signal] if self.signal else 0

    @property
    def asked(self) -> bool:
        """True after a signal."""
        return self.signal is not None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, a first signal is only noted, for the code there to look at. Raises Interrupted at the end then."""
        self.noting = True
        try:
            yield
        finally:
            self.noting = False
        if self.asked:
            raise Interrupted

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `noted`, around what may wait for long and changes nothing: a signal ends it. Raises Interrupted."""
        self.noting = False
        try:
            if self.asked:
                raise Interrupted
            yield
        finally:
            self.noting = True


@contextmanager
def watch() -> Iterator[StopRequest]:
    """Collect stop signals: one that ends the work becomes Stopped. Outside the main thread Python has no handlers."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    own = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a worker that was forked with our handlers: it has nothing to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        first, request.signal = request.signal is None, request.signal or signal.Signals(number)
        if not (request.noting and first):
            raise Interrupted

    before = {number: signal.signal(number, note) for number in EXIT_CODES}
    try:
        yield request
    except KeyboardInterrupt:  # Interrupted, or what a library has made of it
        if not request.asked:
            raise
        raise Stopped("stopped; everything that was trained is saved", request.exit_code) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Call in a process that multiprocessing started: it ends as soon as the process that started it is gone.

    A thread waits for the end of a pipe that the system closes when the parent dies, by whatever signal. Linux could
    send a signal (PR_SET_PDEATHSIG), but sends it when the *thread* that started this process ends.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch_parent() -> None:
        parent.join()
        os._exit(1)  # nothing is cleaned up, as after a kill: files are whole, and the system frees the locks

    threading.Thread(target=watch_parent, daemon=True, name="luthier-parent").start()
