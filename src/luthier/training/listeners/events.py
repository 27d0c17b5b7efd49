"""events.jsonl in the run folder: all that a run reports, a JSON object a line, with the time in seconds since 1970."""

import time
from pathlib import Path
from typing import Any

from luthier.core.events import Listeners, Progress
from luthier.core.strict_json import to_json
from luthier.training.listeners.base import Listener


class Events(Listener):
    """Lets another program follow a run while it works."""

    def open(self, run: Path) -> Progress:
        return _File(run / "events.jsonl")


class _File(Listeners):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def call(self, method: str, *values: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            line = {"time": time.time(), "event": method, "values": values}
            file.write(to_json(line, ensure_ascii=False, default=str) + "\n")
