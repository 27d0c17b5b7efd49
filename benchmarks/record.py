"""Where a result comes from: command, date and machine, in one form for all benchmarks.

    python -m benchmarks.record NAME COMMAND...    # run a command, keep what it prints in benchmarks/records/NAME.txt

A benchmark that keeps lines of results appends them by `keep`. A module that makes tables of a page from such lines has
a function `tables`, and the page has its command: `<!-- made by COMMAND: begin -->`. `python -m benchmarks.claims` reads all
of these.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from luthier.core.shell import public
from luthier.runs.provenance import environment

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}
"""Flags of /proc/cpuinfo that decide how fast a type computes -> how they are shown."""
OLD = "2 processors; model not recorded"
BEFORE = {
    "compare/results.jsonl": ("2026-11-26 (a6604f2)", "python -m benchmarks.compare.run --rounds 2"),
    "data/speed.jsonl": ("2026-11-24 (dca492e)", "python -m benchmarks.data.speed"),
    "methods/one_rate.jsonl": (
        "2026-11-30 (2963a5a)",
        "python -m benchmarks.methods.run assistant --arms adalora ia3 oft vera --lr 0.002 --out FILE",
    ),
    "methods/results.jsonl": ("2026-11-26 (2ff5e54)", "python -m benchmarks.methods.run TASK"),
    "methods/speed.jsonl": ("2026-11-24 (244f80f)", "python -m benchmarks.methods.speed --steps 6"),
    "methods/sweep.jsonl": ("2026-11-24 (ca87340)", "python -m benchmarks.methods.run sst2 reviews --sweep"),
    "serving/results.jsonl": ("2026-11-27 (323a43c)", "python -m benchmarks.serving.run"),
    "tracking/results.jsonl": ("2026-11-29 (1aa13b9)", "python -m benchmarks.tracking.run --cost"),
    "training/results.jsonl": ("2026-11-26 (62333df)", "python -m benchmarks.training.run --rounds 2"),
}
"""File of results -> last day and commit, and command, of its lines from before each line had them."""


class Origin(NamedTuple):
    """What remakes a figure, and when and where it was made."""

    command: str
    date: str
    machine: str


@dataclass(frozen=True)
class Table:
    """Text that stands in a page between `<!-- made by COMMAND: begin -->` and `END`, and the results that it is made from."""

    page: Path
    command: str
    text: str
    results: tuple[Path, ...]
    end: str = "<!-- end -->"
    of: Callable[[dict[str, Any]], bool] = bool
    """Which lines of the results it is made from."""

    @property
    def begin(self) -> str:
        return f"<!-- made by {self.command}: begin -->"


def put(tables: Iterable[Table]) -> None:
    """Write tables into their pages."""
    for table in tables:
        before, _, rest = table.page.read_text(encoding="utf-8").partition(table.begin)
        after = rest.partition(table.end)[2]
        table.page.write_text(f"{before}{table.begin}\n{table.text.strip()}\n{table.end}{after}", encoding="utf-8")


@cache
def _machine() -> str:
    """Processor, how many of them this process may use, memory, and GPUs."""
    info = Path("/proc/cpuinfo")
    lines = dict(line.partition(":")[::2] for line in info.read_text().splitlines()) if info.is_file() else {}
    told = {key.strip(): value.strip() for key, value in lines.items()}
    flags = [name for flag, name in INSTRUCTIONS.items() if flag in told.get("flags", "").split()]
    model = " ".join([told.get("model name", environment()["system"]), *([f"({', '.join(flags)})"] if flags else [])])
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpus: list[str] = []
    if smi := shutil.which("nvidia-smi"):
        asked = [smi, "--query-gpu=name", "--format=csv,noheader"]
        gpus = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
    return ", ".join([model, f"{count} processors", f"{memory:.0f} GB", *gpus])


@cache
def _commit() -> str:
    """The commit of this source, with a plus behind it where src/ has changes."""
    if not shutil.which("git"):
        return ""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    changed = subprocess.run(
        [*git, "diff", "--quiet", "HEAD", "--", "src"], capture_output=True, check=False
    ).returncode
    return head + "+" * bool(changed)


def made(command: list[str] | None = None, threads: int | None = None) -> dict[str, str]:
    """Command and threads (of this process, unless given), day in UTC, commit, machine and versions."""
    torch, here = sys.modules.get("torch"), environment()
    threads = threads or (torch.get_num_threads() if torch else os.environ.get("OMP_NUM_THREADS", "all"))
    versions = [f"{name} {version}" for name, version in here["packages"].items() if version != "not installed"]
    return {
        "command": shlex.join(map(public, command or ["python", *sys.orig_argv[1:]])),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{_machine()}, {threads} threads",
        "versions": ", ".join([*versions, f"Python {here['python']}"]),
    }


def keep(file: Path, line: dict[str, Any]) -> None:
    """Append a line of results, with where it comes from; `threads` of the line are those of the run."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line | {"made": made(threads=line.get("threads"))}) + "\n")


def origin_of(results: Iterable[Path], of: Callable[[dict[str, Any]], bool] = bool) -> Origin:
    """Where the lines `of` files come from: the span of days, and the last command and machine."""
    commands, dates, machines = [], set(), []
    for file in results:
        every = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        lines = [line.get("made") for line in every if of(line)]
        if not all(lines):
            name = file.relative_to(ROOT / "benchmarks").as_posix()
            if name not in BEFORE:
                raise SystemExit(f"{name}: lines without `made`; append results by benchmarks.record.keep")
            date, command = BEFORE[name]
            dates.add(date)
            commands.append(command)
            machines.append(OLD)
        for line in filter(None, lines):
            dates.add(line["date"])
            commands.append(line["command"])
            machines.append(line["machine"])
    if not dates:
        return Origin("", "not recorded", "not recorded")
    return Origin(commands[-1], " to ".join(dict.fromkeys([min(dates), max(dates)])), machines[-1])


def read(name: str) -> tuple[Origin, str] | None:
    """A record and the output of its command."""
    file = RECORDS / f"{name}.txt"
    if not re.fullmatch(r"[\w-]+", name) or not file.is_file():
        return None
    head, _, output = file.read_text(encoding="utf-8").partition("\n\n")
    told = dict(line.partition(": ")[::2] for line in head.splitlines())
    return Origin(told["command"], told["date"], told["machine"]), output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file: letters, digits and dashes")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if not re.fullmatch(r"[\w-]+", given.name) or not given.command:
        parser.error("give a name (letters, digits and dashes) and a command")
    about = made(given.command)
    words = [sys.executable, *given.command[1:]] if given.command[0] == "python" else given.command
    before = os.times()
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    after = os.times()
    print(done.stdout, end="")
    if done.returncode:
        raise SystemExit(f"{about['command']} ended with exit code {done.returncode}; nothing is kept")
    spent = sum(after[2:4]) - sum(before[2:4])
    head = [*(f"{key}: {value}" for key, value in about.items()), f"processor seconds: {spent:.0f}"]
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / f"{given.name}.txt").write_text("\n".join(head) + f"\n\n{done.stdout}", encoding="utf-8")


if __name__ == "__main__":
    main()
