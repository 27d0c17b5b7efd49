"""What a tracker costs a step: the same run without one and with each, in alternation.

    python -m benchmarks.tracking.run --rounds 5
    python -m benchmarks.tracking.run --table

Each arm trains the embedded base in a process of its own, in an order that turns with the rounds. A step's time is that
of metrics.jsonl, wall clock; its processor time is that of the whole process, all threads, and of what it started.
The first steps are counted apart: a tracker's package is imported beside them. Lines go to results.jsonl, and the table
of README.md is made from them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results.jsonl", HERE / "README.md"
BEGIN, END = "<!-- made by python -m benchmarks.tracking.run --table: begin -->", "<!-- end -->"
PACKAGES = {
    "tensorboard": "tensorboardX",
    "trackio": "trackio",
    "swanlab": "swanlab",
    "wandb": "wandb",
    "mlflow": "mlflow",
}
NONE = "none"


def work(arm: str, steps: int, first: int, place: Path) -> None:
    """One arm, in this process: a line of JSON."""
    import psutil

    from luthier.core.events import Progress
    from luthier.pipeline.train import train
    from luthier.recipe.config import RunConfig
    from luthier.runs.folder import RunFolder

    process = psutil.Process()

    def spent() -> float:
        each = [process.cpu_times(), *(child.cpu_times() for child in process.children(recursive=True))]
        return sum(times.user + times.system for times in each)

    class Clock(Progress):
        at: ClassVar[dict[int, float]] = {}

        def train_begins(self, start: int, steps: int) -> None:
            self.at[0] = spent()

        def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
            if record["step"] in (first, steps):
                self.at[record["step"]] = spent()

        def warn(self, text: str) -> None:
            raise SystemExit(text)

    run = place / arm
    own = [f"train.track=[{'' if arm == NONE else arm}]", f"train.steps={steps}", f"run={run}", "train.save_every=1e6"]
    own += ["model=builtin", "data=builtin:reviews", "train.evaluate_every=1e6", "evaluate.before=false"]
    train(RunConfig.load(None, [*own, "evaluate.generate=0", "evaluate.rows=16"]), progress=Clock())
    seconds = [line["seconds"] for line in RunFolder(run).history() if "loss" in line]
    later = {"seconds": mean(seconds[first:]), "processor": (Clock.at[steps] - Clock.at[first]) / (steps - first)}
    begin = {"begin_seconds": sum(seconds[:first]), "begin_processor": Clock.at[first] - Clock.at[0]}
    print(json.dumps({"arm": arm, "steps": steps, "first": first, **later, **begin}))


def rounds(given: argparse.Namespace) -> None:
    arms = [NONE, *(name for name in given.arms if find_spec(PACKAGES[name]))]
    for name in set(given.arms) - set(arms):
        print(f"{name}: left out, {PACKAGES[name]} is not installed")
    for number in range(given.rounds):
        turned = arms[number % len(arms) :] + arms[: number % len(arms)]
        for arm in turned:
            with tempfile.TemporaryDirectory() as place:
                words = ["--work", arm, "--steps", str(given.steps), "--first", str(given.first), "--place", place]
                command = [sys.executable, "-m", "benchmarks.tracking.run", *words]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{arm} did not finish:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
            line = json.loads(next(text for text in done.stdout.splitlines() if text.startswith('{"arm"')))
            version = "" if arm == NONE else metadata.version(PACKAGES[arm])
            line |= {"round": number, "version": version, "processors": len(os.sched_getaffinity(0))}
            print(line, flush=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def table() -> None:
    """Put the table into README.md: ratios to the run without a tracker of the same round."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for text in RESULTS.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        found[line["arm"]][line["round"]] = line
    lines = [
        "| tracker | time per step, over that without one | processor time per step | first steps |",
        "|---|---|---|---|",
    ]
    for arm, made in found.items():
        if arm != NONE:
            pairs = [(line, found[NONE][number]) for number, line in made.items()]
            cells = [_ratio([ours[key] / none[key] for ours, none in pairs]) for key in ("seconds", "processor")]
            more = mean(ours["begin_seconds"] - none["begin_seconds"] for ours, none in pairs)
            version = next(iter(made.values()))["version"]
            lines.append(f"| {arm} ({PACKAGES[arm]} {version}) | {cells[0]} | {cells[1]} | {more:+.1f} s |")
    none = [*found[NONE].values()]
    of_none = (
        f"{1000 * mean(line['seconds'] for line in none):.0f} ms ± {1000 * stdev([x['seconds'] for x in none]):.0f}"
    )
    last = none[-1]
    lines += [
        "",
        f"{len(none)} rounds, {last['steps']} steps, of which the first {last['first']} are counted apart; {last['processors']} "
        f"processors. A step without a tracker took {of_none}.",
    ]
    page = PAGE.read_text(encoding="utf-8")
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    PAGE.write_text(page[:begin] + "\n" + "\n".join(lines) + "\n" + page[end:], encoding="utf-8")


def _ratio(ratios: list[float]) -> str:
    return f"{mean(ratios):.4f} ± {stdev(ratios):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--first", type=int, default=60)
    parser.add_argument("--arms", nargs="+", choices=PACKAGES, default=[*PACKAGES])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--work", choices=[NONE, *PACKAGES], help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.steps, given.first, given.place)
    elif given.table:
        table()
    else:
        rounds(given)


if __name__ == "__main__":
    main()
