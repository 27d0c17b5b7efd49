"""Ctrl-C and SIGTERM finish the step and save; a second one ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODES = {signal.SIGINT: 75, signal.SIGTERM: 143}


class StopRequest:
    """Which signal asked for a stop, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """What the process should return: 143 after SIGTERM, 75 after ctrl-C."""
        return EXIT_CODES.get(self.signal, 75) if self.signal else 0


@contextmanager
def watch() -> Iterator[StopRequest]:
    """Collect stop signals instead of dying of them. Outside the main thread Python allows no handlers."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number)

    before = {number: signal.signal(number, note) for number in EXIT_CODES}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
