"""The runs below a folder as the page lists them; only what changed is read again."""

import os
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from luthier.core import files
from luthier.core.errors import Busy, InputError
from luthier.reports.chart import reduced, series
from luthier.runs.folder import RunFolder
from luthier.runs.state import History, RunState, is_held, run_folders, state_of

HIDDEN = ".ui"
"""Folder below the runs' for what the page keeps: tags, queue, files that were dropped on it, deleted runs."""
SPARK = 48
"""Points of the small curve beside a run."""
OPEN = 8
"""Finished runs whose curve stays in memory."""


class NoRun(InputError):
    """There is no such run below the folder."""


@dataclass(slots=True)
class _Entry:
    stamp: tuple[object, ...] = ()
    state: RunState | None = None
    history: History | None = None
    """Of a run that is at work."""
    facts: dict[str, Any] = field(default_factory=dict)


class RunIndex:
    """Safe to call from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.entries: dict[str, _Entry] = {}
        self.opened: dict[str, History] = {}
        self.version, self.lock, self.reading = 0, Lock(), Lock()
        self.tags_file = self.root / HIDDEN / "tags.json"

    def refresh(self) -> int:
        """Read what changed; the number of changes so far."""
        with self.lock:
            found = {path.relative_to(self.root).as_posix(): path for path in self._folders()}
            changed = bool(self.entries.keys() - found.keys())
            self.entries = {name: self.entries.get(name, _Entry()) for name in found}
            for name, path in found.items():
                changed |= self._read(name, self.entries[name], path)
            self.version += changed
            return self.version

    def _folders(self) -> Iterator[Path]:
        return run_folders(self.root) if self.root.is_dir() else iter(())

    def _read(self, name: str, entry: _Entry, path: Path) -> bool:
        """Whether the run is another than before."""
        folder = RunFolder(path)
        stamp = tuple(
            file_stamp(each) for each in (folder.metrics, folder.result, folder.ledger.path, folder.checkpoints)
        )
        if stamp == entry.stamp and entry.state is not None and entry.state.state in ("finished", "damaged"):
            return False
        entry.history = entry.history or History(folder)
        before, state = entry.state, state_of(path, entry.history)
        entry.state = state
        if before is not None and stamp == entry.stamp and before.state == state.state:
            return False
        entry.stamp = stamp
        points = reduced(series(entry.history.steps, "loss"), SPARK)
        entry.facts = {"spark": [round(loss, 4) for _, loss in points], **_score(folder, state)}
        if state.state != "running":
            entry.history = None
        return True

    def runs(self) -> list[dict[str, Any]]:
        """What the page lists, the run that changed last first."""
        tags = self.tags()
        with self.lock:
            entries = dict(self.entries)
        made = []
        for name, entry in entries.items():
            if entry.state is not None:
                comparison = name.partition("/arms/")[0] if "/arms/" in name else ""
                made.append(
                    {**entry.state.to_dict(), "id": name, "comparison": comparison, **entry.facts}
                    | {"tags": tags.get(name, []), "run": name}
                )
        return sorted(made, key=lambda run: -run["changed"])

    def folder(self, name: str) -> RunFolder:
        """The folder of a run that was found below the root; NoRun for any other name."""
        if name not in self.entries:  # a run that has just begun
            self.refresh()
        path = (self.root / name).resolve() if name in self.entries else self.root
        if not path.is_relative_to(self.root) or path == self.root:
            raise NoRun(f"there is no run {name[:200]!r} in {self.root}", fix="reload the list of runs")
        return RunFolder(path)

    def state(self, name: str) -> RunState:
        """The state of a run as it was read last."""
        self.folder(name)
        with self.lock:
            state = self.entries[name].state if name in self.entries else None
        return state or RunState(name, "damaged")

    def history(self, name: str) -> History:
        """The lines of a run, kept for the next call."""
        folder = self.folder(name)
        with self.reading:
            history = self.opened.pop(name, None) or History(folder)
            history.update()
            self.opened[name] = history  # the one that was used last stands last
            for old in list(self.opened)[:-OPEN]:
                del self.opened[old]
            return history

    def tags(self) -> dict[str, list[str]]:
        """Run -> its tags."""
        return dict(files.read_object(self.tags_file, "delete it")) if self.tags_file.is_file() else {}

    def set_tags(self, name: str, tags: list[str]) -> None:
        """Replace the tags of a run."""
        self.folder(name)
        with self.lock:
            self.tags_file.parent.mkdir(parents=True, exist_ok=True)
            kept = {each: value for each, value in {**self.tags(), name: tags}.items() if value}
            files.write_json(self.tags_file, kept)
            self.version += 1

    def stop(self, name: str) -> dict[str, Any]:
        """Ask the process that works on a run to save and stop. InputError where it is not on this machine."""
        folder = self.folder(name)
        holder = folder.holder()
        if holder is None:
            where = folder.other_host()
            what = (
                f"the run is at work on {where}, not here" if where else f"no process of this machine works on {name}"
            )
            raise InputError(what, fix="stop it where it was started")
        os.kill(holder, signal.SIGTERM)
        return {"pid": holder}

    def delete(self, name: str) -> Path:
        """Move a run to the bin, and return its place there. Busy where a process is at work on it."""
        folder = self.folder(name)
        if is_held(folder):  # also on another machine, whose lock is not seen here
            raise Busy(f"{name}: a process is at work on this run", fix="stop it first")
        place = self.root / HIDDEN / "bin" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        with folder.held():
            place.mkdir(parents=True)
            folder.path.rename(place / folder.path.name)
        self.refresh()
        return place / folder.path.name


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Another one once the file or folder is changed; None where it cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _score(folder: RunFolder, state: RunState) -> dict[str, Any]:
    """The interval of the score that ranks, and whether more of it is better."""
    if state.state != "finished" or not state.metric:
        return {}
    try:
        score = files.read_object(folder.result).get("tuned", {}).get(state.metric) or {}
    except InputError:
        return {}
    return {"low": score.get("low"), "high": score.get("high"), "higher_is_better": score.get("higher_is_better")}
