"""What a listener of a run is, and the list of them that a run reports to."""

from pathlib import Path
from typing import Any, ClassVar

from luthier.core.events import Listeners, Progress
from luthier.core.registry import Family, Plugin


class Listener(Plugin):
    """Something that follows a run: a file, a tracker, a page."""

    required: ClassVar[tuple[str, ...]] = ("open",)

    def open(self, run: Path) -> Progress:
        """The object that the run in this folder reports to from now on; a resumed run opens it again."""
        raise NotImplementedError


LISTENERS = Family(Listener, "listener")


class Guarded(Listeners):
    """A listener that may fail without ending the run: then it is reported once and left out."""

    def __init__(self, name: str, listener: Progress, report: Progress) -> None:
        super().__init__(listener)
        self.name, self.report = name, report

    def call(self, method: str, *values: Any) -> Any:
        """As Listeners does it, but an exception costs this listener alone."""
        try:
            return super().call(method, *values)
        except Exception as error:
            self.listeners.clear()
            self.report.warn(f"the listener {self.name} failed and is left out: {type(error).__name__}: {error}")


def listen(run: Path, chosen: tuple[Listener, ...], progress: Progress) -> Progress:
    """Everything that the run in a folder reports to: `progress` (the terminal), and those that were chosen."""
    others = []
    for listener in chosen:
        try:
            others.append(Guarded(listener.name, listener.open(run), progress))
        except Exception as error:
            progress.warn(f"the listener {listener.name} cannot start: {type(error).__name__}: {error}")
    return Listeners(progress, *others)
