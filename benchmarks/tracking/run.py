"""What a tracker costs a step: the same run without one and with each, in alternation.

    python -m benchmarks.tracking.run --cost           # seconds: what each tracker computes for a step, by itself
    python -m benchmarks.tracking.run --rounds 5       # the same run without and with each; only on an idle machine
    python -m benchmarks.tracking.run --table

For --cost made-up lines of metrics.jsonl are sent in batches of 16, as a run of 8 steps a second would have them, and the
processor time of all threads and child processes is counted: it is what a tracker takes from a run that leaves no
processor idle, and other work on the machine does not change it much.

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

from benchmarks.record import Table, keep, put

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results.jsonl", HERE / "README.md"
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
            if arm in text:  # of its tracker; a loss spike is the run's own
                raise SystemExit(text)

    run = place / arm
    own = [f"train.track=[{'' if arm == NONE else arm}]", f"train.steps={steps}", f"run={run}", "train.save_every=1e6"]
    own += ["model=builtin", "data=builtin:reviews", "train.evaluate_every=1e6", "evaluate.before=false"]
    train(RunConfig.load(None, [*own, "evaluate.generate=0", "evaluate.rows=16"]), progress=Clock())
    seconds = [line["seconds"] for line in RunFolder(run).history() if "loss" in line]
    later = {"seconds": mean(seconds[first:]), "processor": (Clock.at[steps] - Clock.at[first]) / (steps - first)}
    begin = {"begin_seconds": sum(seconds[:first]), "begin_processor": Clock.at[first] - Clock.at[0]}
    print(json.dumps({"arm": arm, "steps": steps, "first": first, **later, **begin}))


def cost(arm: str, steps: int, place: Path) -> None:
    """What one tracker computes for a step, in this process, without a run: a line of JSON."""
    import time

    import psutil

    from luthier.core.files import write_json
    from luthier.pipeline.track import Follower
    from luthier.recipe.config import RunConfig
    from luthier.runs.folder import RunFolder
    from luthier.tracking.base import TRACKERS

    process, folder = psutil.Process(), RunFolder(place / "run")
    folder.path.mkdir()
    folder.recipe.write_text(RunConfig.load(None, ["model=builtin", "data=builtin:reviews"]).dump())
    write_json(folder.environment, {"python": "3"})

    def spent() -> float:
        each = [process.cpu_times(), *(child.cpu_times() for child in process.children(recursive=True))]
        return sum(times.user + times.system for times in each)

    def lines(first: int, last: int) -> list[dict[str, Any]]:
        step = {"loss": 0.5, "lr": 1e-3, "grad_norm": 1.5, "tokens": 600, "seconds": 0.125, "memory": 5e8}
        return [{"step": number, **step, "time": time.time()} for number in range(first, last + 1)]

    follower = Follower(TRACKERS.parse(arm), arm, folder)
    began = spent()
    follower.tracker.load()
    follower._send(lines(1, 16))
    time.sleep(2)
    at = spent()
    for first in range(17, steps + 17, 16):
        follower._send(lines(first, first + 15))
        time.sleep(0.2)
    time.sleep(2)
    sent = spent() - at
    line = {"arm": arm, "cost_steps": steps, "milliseconds": 1000 * sent / steps, "begin": at - began}
    print(json.dumps(line), flush=True)
    os._exit(0)  # nobody reads what was stored


def call(arm: str, *words: str) -> dict[str, Any]:
    """One arm in a process of its own; its line of results."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "benchmarks.tracking.run", "--work", arm, "--place", place, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [text for text in done.stdout.splitlines() if text.startswith('{"arm"')]
    if done.returncode or not found:
        raise SystemExit(f"{arm} did not finish:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    version = "" if arm == NONE else metadata.version(PACKAGES[arm])
    line: dict[str, Any] = json.loads(found[0]) | {"version": version, "processors": len(os.sched_getaffinity(0))}
    return line


def rounds(given: argparse.Namespace) -> None:
    chosen = [name for name in given.arms if find_spec(PACKAGES[name])]
    for name in set(given.arms) - set(chosen):
        print(f"{name}: left out, {PACKAGES[name]} is not installed")
    arms = chosen if given.cost else [NONE, *chosen]
    words = ["--steps", str(given.steps), "--first", str(given.first), *(["--cost"] if given.cost else [])]
    for number in range(given.rounds):
        turn = number % len(arms)
        for arm in [*arms[turn:], *arms[:turn]]:
            line = call(arm, *words) | {"round": number}
            print(line, flush=True)
            keep(RESULTS, line)


def tables() -> list[Table]:
    """The tables of README.md. Ratios are to the run without a tracker of the same round."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    costs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for text in RESULTS.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "milliseconds" in line:
            costs[line["arm"]].append(line)
        else:
            found[line["arm"]][line["round"]] = line
    lines = ["| tracker | processor time for a step | to import it and to begin |", "|---|---|---|"]
    for arm, made in costs.items():
        cells = [_spread([line["milliseconds"] for line in made], 2), _spread([line["begin"] for line in made], 1)]
        lines.append(f"| {arm} ({PACKAGES[arm]} {made[0]['version']}) | {cells[0]} ms | {cells[1]} s |")
    last = next(iter(costs.values()))
    lines += ["", f"{len(last)} rounds of {last[0]['cost_steps']} steps on {last[0]['processors']} processors."]
    if found:
        lines += [
            "",
            "| tracker | time per step, over that without one | processor time | first steps |",
            "|---|---|---|---|",
        ]
        for arm, rounds in found.items():
            if arm != NONE:
                pairs = [(line, found[NONE][number]) for number, line in rounds.items()]
                ratios = [
                    _spread([ours[key] / none[key] for ours, none in pairs], 4) for key in ("seconds", "processor")
                ]
                more = mean(ours["begin_seconds"] - none["begin_seconds"] for ours, none in pairs)
                lines.append(f"| {arm} | {ratios[0]} | {ratios[1]} | {more:+.1f} s |")
        none = [*found[NONE].values()]
        step = _spread([1000 * line["seconds"] for line in none], 0)
        lines += [
            "",
            f"{len(none)} rounds of {none[0]['steps']} steps, the first {none[0]['first']} counted apart. A step without a tracker took {step} ms.",
        ]
    return [Table(PAGE, "python -m benchmarks.tracking.run --table", "\n".join(lines), (RESULTS,))]


def _spread(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--first", type=int, default=60)
    parser.add_argument("--arms", nargs="+", choices=PACKAGES, default=[*PACKAGES])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--work", choices=[NONE, *PACKAGES], help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work and given.cost:
        cost(given.work, given.steps, given.place)
    elif given.work:
        work(given.work, given.steps, given.first, given.place)
    elif given.table:
        put(tables())
    else:
        rounds(given)


if __name__ == "__main__":
    main()
