"""The tasks of a comparison as array jobs of Slurm, one array for each amount of memory that the plans name."""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.comparison.runner import CompareTask, Context
from luthier.comparison.tasks import do_alone, planned_bytes, task_record
from luthier.comparison.workers import Event
from luthier.core.errors import InputError
from luthier.core.files import read_object, write_json
from luthier.launching import slurm
from luthier.launching.base import call, render

POLL_SECONDS = 2.0
PATIENCE = 10
"""Polls after which a task that has left the queue counts as failed: a shared folder shows a file late."""
MIB = 2**20


class OnSlurm:
    """The cluster whose login node this is."""

    local = False

    def __init__(self, partition: str = "", time: str = "", retries: int = 3) -> None:
        """`time` is the limit of one task, which is saved before and goes on in the next job of it.

        `retries` is how often a task is tried again after it was killed.
        """
        self.partition, self.time, self.retries = partition, time, retries

    def check(self) -> None:
        """InputError for options that cannot stand in a script, MissingExtra without Slurm."""
        slurm.check_limits(self.partition, self.time)
        call(["sbatch", "--version"], slurm.MISSING)

    def execute(self, context: Context, tasks: Sequence[CompareTask]) -> Iterator[Event]:
        """Submit the tasks and wait for the file that each leaves at its end; stopped or left, they save and end."""
        folder = (context.folder / "jobs").absolute()
        folder.mkdir(exist_ok=True)
        script = folder / "array.sh"
        on_gpu = context.config.model.device != "cpu"
        warning = slurm.warning_seconds(self.time)
        render("slurm_array.sh.jinja", script, run=self, folder=folder, on_gpu=on_gpu, warning=warning)
        arrays: dict[int | None, list[int]] = defaultdict(list)
        for number, task in enumerate(tasks):
            _outcome(folder, number).unlink(missing_ok=True)
            write_json(folder / f"task-{number}.json", task_record(task))
            planned = None if on_gpu else planned_bytes(context, task)
            arrays[planned and -(-planned // (256 * MIB)) * 256].append(number)
        jobs: list[str] = []
        waiting = set(range(len(tasks)))
        unseen = [0] * len(tasks)
        try:
            for memory, numbers in arrays.items():
                listed = ",".join(map(str, numbers))
                wanted = [f"--mem={memory}M"] if memory else []
                jobs.append(slurm.submit(script, f"--array={listed}%{context.workers}", *wanted))
            context.progress.note(f"array jobs {', '.join(jobs)}; their logs: {folder}")
            while waiting:
                queued = _queued(jobs)  # first the queue, then the files: what has left it has written its own
                for number in sorted(waiting):
                    unseen[number] += queued is not None and number not in queued
                    file = _outcome(folder, number)
                    found: dict[str, Any]
                    if file.is_file():
                        found = read_object(file)
                    elif unseen[number] > PATIENCE:
                        found = {"kind": "failed", "value": f"its job ended without a result; see the logs in {folder}"}
                    else:
                        continue
                    waiting.remove(number)
                    yield Event(number, found["kind"], found["value"])
                time.sleep(POLL_SECONDS if waiting else 0)
        finally:
            if waiting and jobs:
                call(["scancel", *jobs], slurm.MISSING)


def _outcome(folder: Path, number: int) -> Path:
    return folder / f"outcome-{number}.json"


def _queued(jobs: Sequence[str]) -> set[int] | None:
    """The numbers of the tasks that wait, run, or are being put back into the queue; None where Slurm does not say."""
    try:
        listed = call(["squeue", "--noheader", "--array", "--format=%K", f"--jobs={','.join(jobs)}"], slurm.MISSING)
    except InputError as error:  # jobs that ended long ago are no more known; else the controller is busy
        return set() if "Invalid" in error.message else None
    return {int(line) for line in listed.split() if line.isdigit()}


def do_number(folder: Path, number: int) -> int:
    """Do a task in its job; its outcome is a file, unless it was stopped: then the job goes back into the queue."""
    given: dict[str, Any] = read_object(folder / f"task-{number}.json")
    kind, value = do_alone(given)
    if kind == "stopped":
        return int(value)
    write_json(_outcome(folder, number), {"kind": kind, "value": value})
    return 0


if __name__ == "__main__":
    sys.exit(do_number(Path(sys.argv[1]), int(sys.argv[2])))
