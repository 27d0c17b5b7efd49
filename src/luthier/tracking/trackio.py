"""Trackio: a local database beside the run, for `TRACKIO_DIR=runs/trackio trackio show`, or a Space. Local by default.

A resumed run asks the database for its last step. Trackio keeps to one folder as long as a process lives. A token for a
Space comes from `hf auth login` or HF_TOKEN.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PrivateAttr

from luthier.core.errors import InputError
from luthier.core.shell import shell_line
from luthier.tracking.base import HELD_OUT, START, Position, State, TrackedRun, Tracker, markdown, scores_of


class Trackio(Tracker):
    """A run in Trackio."""

    extra: ClassVar[str] = "trackio"
    packages: ClassVar[tuple[str, ...]] = ("trackio", "PIL")

    space: str | None = None
    """Hugging Face Space that everything is sent to, such as me/runs; none: nothing is sent."""
    folder: str = ""
    """Folder of its database; empty: trackio beside the run folder."""

    _run: Any = None
    _step: int = 0
    _result: dict[str, Any] = PrivateAttr(default_factory=dict)
    _complete: bool = False

    def load(self) -> None:
        """It is imported when its folder is known: the package reads that once."""

    def begin(self, run: TrackedRun) -> Position | None:
        folder = run.beside(self.folder, "trackio")
        os.environ["TRACKIO_DIR"] = str(folder)
        import trackio
        from trackio import utils

        if Path(utils.TRACKIO_DIR) != folder:
            raise InputError(
                f"Trackio writes into {utils.TRACKIO_DIR} as long as this process lives, not into {folder}",
                fix="start another process, or set the tracker's folder",
            )
        for module in (trackio, utils, sys.modules["trackio.run"]):  # they print between the lines of the terminal
            vars(module)["print"] = lambda *_, **__: None
        if self.space is None:  # it would ask huggingface.co who the owner of a token is, also for a local run
            vars(sys.modules["trackio.run"])["_get_default_namespace"] = lambda: None
        own: dict[str, Any] = {"project": self.project, "name": f"{run.name}-{run.id[:4]}", "space_id": self.space}
        off = dict.fromkeys(("embed", "auto_log_gpu", "auto_log_cpu"), False)
        self._run = trackio.init(**own, **off, config=dict(run.config), resume="allow")
        return None if self.space else self._last()

    def _last(self) -> Position:
        """What the database has. Rows are written in order, so nothing before the last one is missing."""
        from trackio.sqlite_storage import SQLiteStorage

        rows = SQLiteStorage.get_logs(self.project, self._run.name, run_id=self._run.id)
        parts = [(row["step"], 2 if row.get("state") == "finished" else int(HELD_OUT in row)) for row in rows]
        last = max([START, *(Position(*each) for each in parts)])
        self._step, self._complete = last.step, last.part == 2
        return last

    def log(self, step: int, values: Mapping[str, float], time: float | None = None) -> None:
        self._step = step
        self._run.log(dict(values), step=step)

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        self._result |= scores_of(values)

    def texts(self, step: int, name: str, texts: Mapping[str, str]) -> None:
        import trackio

        self._result[name] = trackio.Markdown(markdown(texts))

    def image(self, step: int, name: str, file: Path) -> None:
        import trackio

        self._result[name] = trackio.Image(str(file))

    def page(self, step: int, name: str, file: Path) -> None:
        import trackio

        self._result[name] = trackio.Html(str(file))

    def command(self, run: TrackedRun) -> str:
        folder = run.shown(run.beside(self.folder, "trackio"))
        return "" if self.space else f"TRACKIO_DIR={shell_line(folder)} trackio show"

    def finish(self, state: State, error: str) -> None:
        if not self._complete:  # in one row, which is stored as a whole
            self._run.log({**self._result, "state": state, **({"error": error} if error else {})}, step=self._step)
        self._run.finish()
