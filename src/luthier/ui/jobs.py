"""Work that the page started: runs one after another, and exports, evaluations and servers beside them.

Each job is a process of its own, `luthier ...` as one would type it, in a session of its own: it goes on where the
page's server ends. What is known of it lies in a file, so that another server finds it. One server keeps the queue: the
one that holds the lock.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any, Literal

import psutil

from luthier.core import files
from luthier.core.errors import Busy, InputError
from luthier.core.shell import shell_line
from luthier.ui.index import HIDDEN

JobState = Literal["waiting", "running", "done", "failed", "stopped"]
QUEUED = ("train", "compare")
"""Kinds of jobs that wait for each other."""
TAIL = 6_000
"""Characters of a job's output that the page shows."""
KEPT = 200
"""Jobs that are remembered after their end."""
IDS = re.compile(r"[0-9a-f]{16}")


class NoJob(InputError):
    """There is no such job."""


@dataclass(slots=True)
class QueuedJob:
    """A command and what became of it."""

    id: str
    kind: str
    target: str
    """The run, comparison or export that it makes."""
    arguments: list[str]
    """After `luthier`."""
    place: float
    """Order in the queue."""
    state: JobState = "waiting"
    pid: int = 0
    born: float = 0.0
    """When its process began, as the system has it: another one may have its number later."""
    started: float = 0.0
    ended: float = 0.0
    code: int | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """As one would type it."""
        return shell_line("luthier", *self.arguments)


class Jobs:
    """The jobs of a folder of runs. Safe to call from several threads."""

    def __init__(self, root: Path) -> None:
        self.root, self.place = root.resolve(), root.resolve() / HIDDEN / "jobs"
        self.lock = RLock()
        self.version = 0
        self.keeping: ExitStack | None = None
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def add(self, kind: str, target: str, arguments: Sequence[str], **about: Any) -> QueuedJob:
        """Start a job, or put it at the end of the queue where its kind waits."""
        with self.lock:
            job = QueuedJob(secrets.token_hex(8), kind, target, list(arguments), time.time(), about=about)
            self._write(job)
            if kind not in QUEUED:
                self._start(job)
        self.tick()
        return job

    def all(self) -> list[QueuedJob]:
        """Every job, the newest first."""
        with self.lock:
            found = [self._read(path) for path in self.place.glob("*.json")] if self.place.is_dir() else []
            return sorted((job for job in found if job is not None), key=lambda job: -job.place)

    def get(self, name: str) -> QueuedJob:
        """The job of that id."""
        job = self._read(self.place / f"{name}.json") if IDS.fullmatch(name) else None
        if job is None:
            raise NoJob(f"there is no job {name[:40]!r}", fix="reload the page")
        return job

    def output(self, job: QueuedJob) -> str:
        """The end of what it printed."""
        path = self.place / f"{job.id}.log"
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4 * TAIL))
            text = file.read().decode("utf-8", errors="replace")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)[-TAIL:]

    def stop(self, name: str) -> QueuedJob:
        """Take a waiting job out of the queue; ask one at work to stop, which saves a run."""
        with self.lock:
            job = self.get(name)
            if job.state == "waiting":
                job.state, job.ended = "stopped", time.time()
                self._write(job)
            elif job.state == "running" and self._alive(job):
                job.about["asked"] = True
                self._write(job)
                os.kill(job.pid, signal.SIGTERM)
            return job

    def first(self, name: str) -> None:
        """Let a waiting job be the next one."""
        with self.lock:
            job = self.get(name)
            waiting = [each.place for each in self.all() if each.state == "waiting"]
            if job.state == "waiting" and waiting:
                job.place = min(waiting) - 1
                self._write(job)

    def forget(self, name: str) -> None:
        """Remove an ended job from the list; what it made stays."""
        with self.lock:
            job = self.get(name)
            if job.state in ("waiting", "running"):
                raise Busy(f"the job is {job.state}", fix="stop it first")
            for path in self.place.glob(f"{job.id}.*"):
                path.unlink(missing_ok=True)
            self.version += 1

    def tick(self) -> int:
        """See what has ended, start what comes next; the number of changes so far."""
        with self.lock:
            jobs = self.all()
            for job in jobs:
                if job.state == "running" and not self._alive(job):
                    self._ended(job)
            for old in [job for job in jobs if job.state not in ("waiting", "running")][KEPT:]:
                self.forget(old.id)
            queue = sorted((job for job in jobs if job.kind in QUEUED), key=lambda job: job.place)
            waiting = [job for job in queue if job.state == "waiting"]
            if waiting and not any(job.state == "running" for job in queue) and self._keeps():
                self._start(waiting[0])
            return self.version

    def close(self) -> None:
        """Leave the queue to another server; jobs at work go on."""
        if self.keeping is not None:
            self.keeping.close()
            self.keeping = None

    def _keeps(self) -> bool:
        """Whether this server keeps the queue."""
        if self.keeping is None:
            held = ExitStack()
            try:
                held.enter_context(files.lock(self.place, Busy("")))
            except Busy:
                return False
            self.keeping = held
        return True

    def _start(self, job: QueuedJob) -> None:
        with (self.place / f"{job.id}.log").open("wb") as log:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(
                [sys.executable, "-m", "luthier.cli.child", str(self.place / f"{job.id}.code"), *job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.children[job.id] = process
        job.state, job.pid, job.started = "running", process.pid, time.time()
        job.born = _born(process.pid) or 0.0
        self._write(job)

    def _alive(self, job: QueuedJob) -> bool:
        child = self.children.get(job.id)
        if child is not None and child.poll() is not None:  # else it would stay as a zombie
            del self.children[job.id]
            return False
        born = _born(job.pid)
        return born is not None and abs(born - job.born) < 1

    def _ended(self, job: QueuedJob) -> None:
        path = self.place / f"{job.id}.code"
        text = path.read_text() if path.is_file() else ""
        job.code = int(text) if text.lstrip("-").isdigit() else None
        asked = bool(job.about.get("asked"))
        job.state = "done" if job.code == 0 else "stopped" if asked else "failed"
        job.ended = path.stat().st_mtime if path.is_file() else time.time()
        self._write(job)

    def _write(self, job: QueuedJob) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        files.write_json(self.place / f"{job.id}.json", asdict(job))
        self.version += 1

    def _read(self, path: Path) -> QueuedJob | None:
        try:
            return QueuedJob(**files.read_object(path))
        except (InputError, TypeError):
            return None


def _born(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def job_record(jobs: Jobs, job: QueuedJob) -> dict[str, Any]:
    """A job as the page has it."""
    return {**asdict(job), "command": job.command, "output": jobs.output(job) if job.state != "waiting" else ""}
