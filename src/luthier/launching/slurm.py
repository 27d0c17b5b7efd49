"""Slurm: a job that saves itself before its time is up, puts itself back into the queue and resumes there."""

import re
import time
from pathlib import Path

from luthier.core.errors import InputError, MissingExtra
from luthier.core.events import Progress
from luthier.core.shell import shell_line
from luthier.launching.base import Job, call, render

TAKES = ("nodes", "devices", "partition", "time")
MISSING = "run this on a login node of the cluster; --write DIR writes the script without Slurm"
WARNING_SECONDS = 300
"""How long before the end of its time a job is warned, so that it can save; a third of a short time."""
TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}")
"""Minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""


def check_limits(partition: str, time: str) -> None:
    """InputError where they cannot stand in a job script."""
    if not re.fullmatch(r"[\w.,-]*", partition, re.ASCII):
        raise InputError(f"--partition {partition!r} is no name of partitions", fix="see sinfo --summarize")
    if time and not TIME.fullmatch(time):
        raise InputError(f"--time {time!r} is no time as Slurm writes it", fix="--time HH:MM:SS, or D-HH:MM:SS")


def warning_seconds(time: str) -> int:
    """Seconds before the end of this time limit at which a job is warned; "" is the limit of the partition."""
    if not time:
        return WARNING_SECONDS
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    parts = [*parts, 0, 0][:3] if dash else [0, *parts, 0][:3] if len(parts) < 3 else parts
    seconds = int(days or 0) * 86400 + parts[0] * 3600 + parts[1] * 60 + parts[2]
    return min(WARNING_SECONDS, seconds // 3) or WARNING_SECONDS  # 0 is no limit


def check(job: Job, *, written: bool) -> None:
    """InputError for what cannot be put into a script."""
    check_limits(job.options.partition, job.options.time)


def write(job: Job, folder: Path, progress: Progress) -> str:
    """Write job.sh; returns the command that submits it."""
    script = folder / "job.sh"
    warning = warning_seconds(job.options.time)
    render("slurm_job.sh.jinja", script, job=job, recipe=folder / "recipe.yaml", warning=warning)
    return shell_line("sbatch", script)


def submit(script: Path, *options: str) -> str:
    """Submit a script, with its log beside it; returns the number of the job. InputError with Slurm's own message."""
    words, doubt = [*options, str(script)], None
    try:
        call(["sbatch", "--test-only", *words], MISSING)
    except MissingExtra:
        raise
    except InputError as error:  # too much for any node, or nodes are down; what else is wrong is said again below
        doubt = error
    number = call(["sbatch", "--parsable", *words], MISSING, cwd=script.parent).partition(";")[0]
    if doubt is not None and _never_runs(number):
        call(["scancel", number], MISSING)
        raise doubt
    return number


def _never_runs(number: str) -> bool:
    """Whether Slurm, once it has looked at a job that waits, says that no node of the partition can take it."""
    for _ in range(20):
        reason = call(["squeue", "--noheader", "--format=%r", f"--jobs={number}"], MISSING)
        if reason not in ("", "None", "Priority"):
            return reason in ("PartitionConfig", "BadConstraints")
        time.sleep(0.5)
    return False


def start(job: Job, folder: Path, progress: Progress) -> None:
    """Submit the job."""
    number = submit(folder / "job.sh")
    progress.stage(f"submitted as job {number}: {job.options.nodes} x {job.options.devices} processes")
    progress.note(f"its log: {folder / f'slurm-{number}.out'}")
    progress.note(f"follow it: {shell_line('luthier', 'watch', job.run)}; stop it: scancel {number}")
