"""Who hears of the progress of a call: nobody unless asked, the terminal, a notebook, or a listener of the user's."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from luthier.api.notebook import Notebook, in_notebook
from luthier.core.events import Progress
from luthier.core.quiet import quiet_libraries
from luthier.core.resources import explained

Shown: TypeAlias = bool | Progress | None
"""True for the terminal or the notebook, False for nothing, None for a notebook alone; or an object that listens."""
logger = logging.getLogger("luthier")
logger.addHandler(logging.NullHandler())  # nothing is printed unless the program sets up logging


class Logged(Progress):
    """Reports to Python's logging, under the name `luthier`."""

    def stage(self, text: str) -> None:
        logger.info("%s", text)

    def note(self, text: str) -> None:
        logger.info("%s", text)

    def said(self, text: str) -> None:
        logger.info("%s", text)

    def warn(self, text: str) -> None:
        logger.warning("%s", text)


@contextmanager
def reporting(shown: Shown, log_every: int = 1) -> Iterator[Progress]:
    """The listener of one call, closed at its end. Errors of the machine say what to do about them."""
    listener = shown if isinstance(shown, Progress) else _chosen(shown, log_every)
    try:
        with quiet_libraries():
            yield listener
        if isinstance(listener, Notebook):
            listener.finish()
    except Exception as error:
        if (known := explained(error)) is not None:
            raise known from error
        raise
    finally:
        if listener is not shown:  # a listener of the user's may hear of another call
            getattr(listener, "close", listener.train_ends)()


def _chosen(shown: "bool | None", log_every: int) -> Progress:
    if shown is not False and in_notebook():
        return Notebook()
    if shown:
        from luthier.cli.terminal.progress import Terminal

        return Terminal(log_every)
    return Logged()
