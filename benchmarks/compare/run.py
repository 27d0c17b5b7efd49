"""What a comparison gains by one base for all runs, and by several runs at a time: one process per run beside it.

    python -m benchmarks.compare.run                      # the demo's base and reviews, six methods, three rounds
    python -m benchmarks.compare.run --table              # the table in README.md

Three ways to the same runs, in turns: `luthier train` for each method, one after another (each reads the rows, loads the
base and measures it); `luthier compare --workers 1`; `luthier compare`, which tries how many at a time are fastest. Same
methods, rows, steps and evaluations; the first way gets what it needs of its own accord, with all processors. What is
timed is the whole command. A comparison measures latency as well, and makes its page: that counts against it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.record import Table, keep, put

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results.jsonl", HERE / "README.md"
METHODS = ["lora", "houlsby", "bitfit", "prefix", "full", "adalora"]
WAYS = {"apart": "`luthier train` for each", "one": "`luthier compare --workers 1`", "beside": "`luthier compare`"}


def settings(steps: int) -> list[str]:
    return [
        "model=builtin",
        "data=builtin:reviews",
        f"train.steps={steps}",
        "train.batch_size=16",
        "train.keep_best=false",
        "evaluate.generate=20",
    ]


def call(*arguments: str) -> None:
    quiet = {"HF_HUB_OFFLINE": "1", "LUTHIER_CACHE": tempfile.gettempdir() + "/luthier-compare-cache"}
    done = subprocess.run(
        [sys.executable, "-m", "luthier", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | quiet,
    )
    if done.returncode:
        raise SystemExit(f"{arguments}:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")


def timed(way: str, steps: int) -> dict[str, Any]:
    """Wall seconds of all runs."""
    place = Path(tempfile.mkdtemp(prefix="luthier-compare-"))
    began = time.perf_counter()
    try:
        if way == "apart":
            for method in METHODS:
                call("train", *settings(steps), f"method={method}", f"run={place / method}")
            return {"seconds": time.perf_counter() - began, "workers": 1}
        workers = ["--workers", "1"] if way == "one" else []
        call("compare", *settings(steps), "--methods", ",".join(METHODS), *workers, f"run={place / 'all'}")
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "workers": json.loads((place / "all/comparison.json").read_text())["workers"]}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def tables() -> list[Table]:
    lines = [json.loads(text) for text in RESULTS.read_text().splitlines()]
    rounds = sorted({(line["invocation"], line["round"]) for line in lines})
    found = {(line["invocation"], line["round"], line["way"]): line for line in lines}
    rows = ["| way | runs at a time | seconds for all | times as fast as one process per run |", "|---|---|---|---|"]
    for way, title in WAYS.items():
        mine = [found[(*key, way)] for key in rounds]
        ratios = [found[(*key, "apart")]["seconds"] / found[(*key, way)]["seconds"] for key in rounds]
        seconds = [line["seconds"] for line in mine]
        rows.append(
            f"| {title} | {mine[0]['workers']} | {mean(seconds):.0f} ({min(seconds):.0f} to {max(seconds):.0f}) | "
            f"{mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    one = lines[-1]
    rows += [
        "",
        f"{len(rounds)} rounds of {len(METHODS)} methods ({', '.join(METHODS)}), {one['steps']} steps each, "
        f"{one['processors']} processors.",
    ]
    return [Table(PAGE, "python -m benchmarks.compare.run --table", "\n".join(rows), (RESULTS,))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--table", action="store_true", help="put the results into README.md")
    given = parser.parse_args()
    if given.table:
        put(tables())
        return
    invocation = int(time.time())
    for number in range(given.rounds):
        for way in WAYS:
            line = timed(way, given.steps) | {
                "way": way,
                "round": number,
                "invocation": invocation,
                "steps": given.steps,
                "processors": len(os.sched_getaffinity(0)),
            }
            line["seconds"] = round(line["seconds"], 2)
            print(json.dumps(line), flush=True)
            keep(RESULTS, line)


if __name__ == "__main__":
    main()
