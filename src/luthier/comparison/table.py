"""The table of a comparison, from what its runs have left."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from math import isfinite
from pathlib import Path
from statistics import mean, median
from typing import Any

from luthier.comparison.candidates import Variant
from luthier.comparison.significance import Draws, differences_to, draws, pareto
from luthier.core.errors import InputError
from luthier.core.files import read_jsonl, read_object
from luthier.evaluation.metrics.base import metrics_of
from luthier.evaluation.records.context import Record, restored_records
from luthier.evaluation.scores import primary_metric
from luthier.methods.base import METHODS, PRESETS, QUANTIZED
from luthier.planning.advisor.evidence import peft_board
from luthier.runs.folder import RunFolder

POINTS = 60
"""Most points of a loss curve."""
Row = dict[str, Any]
Runs = list[tuple[int, RunFolder, dict[str, Any]]]
"""(seed, folder, result) of each finished run of one variant."""
COSTS = (
    ("trainable", 2.0, "few parameters", "many parameters"),
    ("adapter_bytes", 2.0, "small file", "large file"),
    ("memory", 1.25, "little memory", "much memory"),
    ("seconds", 1.25, "quick to train", "slow to train"),
)
"""Field of a row; by which factor it has to differ from the middle of the other methods to be named; and its words."""
UNKNOWN = ("score", "trainable", "share", "adapter_bytes", "memory", "tokens_per_second", "seconds")


@cache
def paper_results() -> dict[str, dict[str, str]]:
    """What papers report, and for other methods PEFT's comparison: variant name -> {text, source}.

    Each figure is on its own models and data, so it is shown beside a measured value, never ranked against it.
    """
    found: dict[str, dict[str, str]] = {}
    board, names = peft_board(), {*METHODS.names(), *PRESETS} - QUANTIZED.keys()
    usual = board.scores["lora"]
    for name, score in board.scores.items():
        if name in names:
            text = f"{board.name} {score.shown()} where LoRA has {usual.shown()} ({board.model}; {score.setting})"
            found[name] = {"text": text, "source": f"PEFT's comparison, {board.source.place}"}
    return found | dict(json.loads(Path(__file__).with_name("paper_results.json").read_text(encoding="utf-8")))


def table_of(
    folder: Path, variants: Sequence[Variant], seeds: Sequence[int], failed: Mapping[tuple[str, int], str]
) -> dict[str, Any]:
    """{metric, higher_is_better, base, best, rows}: a row for each variant, those that did not run with the reason."""
    finished: dict[str, Runs] = {}
    for variant in variants:
        runs = [(seed, RunFolder(variant.run_folder(folder, seed))) for seed in seeds]
        finished[variant.name] = [(seed, run, run.read_json(run.result)) for seed, run in runs if run.result.is_file()]
    first = next((runs[0][2] for runs in finished.values() if runs), None)
    if first is None:
        rows = [_row(variant, [], None, {}, failed) for variant in variants]
        return {"metric": "", "higher_is_better": True, "base": None, "best": "", "rows": rows}
    score = primary_metric(first["tuned"])
    metric = metrics_of()[score]
    function, higher = metric.function, metric.higher
    found = {name: draws(function, [_records(run) for _, run, _ in runs]) for name, runs in finished.items() if runs}
    whole = {n: drawn for n, drawn in found.items() if len(finished[n]) == len(seeds) and isfinite(drawn.value)}
    best = (max if higher else min)(whole or found, key=lambda each: found[each].value)
    against = {"best": differences_to(whole, best, higher=higher) if best in whole else {}}
    if "full" in whole:
        against["full"] = differences_to(whole, "full", higher=higher)
    rows = [_row(one, finished[one.name], found.get(one.name), against, failed) for one in variants]
    done = {row["arm"]: row for row in rows if row["status"] == "done"}
    for cost in ("trainable", "seconds"):
        front = pareto({name: (row[cost], row["score"]["value"]) for name, row in done.items()}, higher=higher)
        for name, row in done.items():
            row[f"front_{cost}"] = name in front
    full = done.get("full")
    for row in done.values():
        costs = {"time": "seconds", "memory": "memory", "bytes": "adapter_bytes"}
        row["cost"] = {name: row[key] / full[key] for name, key in costs.items()} if full else {}
        row["strengths"], row["weaknesses"], row["fits"] = _words(row, list(done.values()))
    sign = -1 if higher else 1
    rows.sort(key=lambda row: (row["status"] != "done", sign * row["score"]["value"] if row["score"] else 0))
    return {
        "metric": score,
        "higher_is_better": higher,
        "base": first["base"].get(score),
        "best": best,
        "comparisons": len(against["best"]),
        "examples": first["validation_examples"],
        "measured_on": first["measured_on"],
        "rows": rows,
    }


def _records(run: RunFolder) -> list[Record]:
    return restored_records([each["tuned"] for each in read_jsonl(run.checked(run.predictions))])


def _row(
    variant: Variant,
    runs: Runs,
    drawn: Draws | None,
    against: Mapping[str, Mapping[str, Any]],
    failed: Mapping[tuple[str, int], str],
) -> Row:
    """The row of a variant: its core idea, what papers claim of it, and what its runs scored and cost."""
    name, method = variant.name, variant.config.method
    why = {seed: text for (own, seed), text in failed.items() if own == name}
    row: Row = {
        "arm": name,
        "method": method.name,
        "quantize": variant.config.model.quantize,
        "idea": (sys.modules[type(method).__module__].__doc__ or "").strip().splitlines()[0],
        "claims": paper_results().get(name),
        "seeds": [seed for seed, _, _ in runs],
    }
    if drawn is None:
        status = "failed" if why and not variant.reason else "not run"
        reason = variant.reason or "; ".join(dict.fromkeys(why.values())) or "not run yet"
        return row | dict.fromkeys(UNKNOWN) | {"status": status, "reason": reason}
    results = [result for _, _, result in runs]
    low, high = drawn.interval
    _, run, first = runs[0]
    latency: dict[str, Any] = {}
    with suppress(InputError):
        latency = read_object(run.path / "latency.json")
    row |= {
        "score": {"value": drawn.value, "low": low, "high": high},
        "trainable": first["trainable"],
        "share": first["trainable"] / first["parameters"],
        "adapter_bytes": first["weights_bytes"],
        "memory": max(r["memory"]["measured"] for r in results),
        "tokens_per_second": mean(r["tokens_per_second"] for r in results),
        "seconds": mean(r["train_seconds"] for r in results),
        "seconds_to_best": mean(_seconds_to_best(run) for _, run, _ in runs),
        "lr": first["lr"],
        "kept_step": first["kept_step"],
        "merges": type(method).mergeable,
        "settings": method.spec(),
        "latency": latency,
        "curve": _curve(run),
        "run": str(run.path),
        "status": "done",
        "reason": "; ".join(f"seed {seed}: {text}" for seed, text in why.items()),
        "against": {who: verdicts[name] for who, verdicts in against.items() if name in verdicts},
    }
    if forgotten := first.get("forgetting"):
        row["forgetting"] = forgotten["all"]["difference"]
    return row


def _seconds_to_best(run: RunFolder) -> float:
    """Seconds of training up to the lowest held-out loss."""
    seconds, best, at = 0.0, float("inf"), 0.0
    for record in run.history():
        seconds += (record.get("seconds") or 0.0) if "loss" in record else 0.0
        loss = record.get("validation_loss")
        if loss is not None and loss < best:
            best, at = loss, seconds
    return at or seconds


def _curve(run: RunFolder) -> dict[str, list[list[float]]]:
    """[step, loss] of training, averaged to at most POINTS points, and of the held-out rows."""
    history = run.history()
    steps = [[r["step"], r["loss"]] for r in history if r.get("loss") is not None]
    held = [[r["step"], r["validation_loss"]] for r in history if r.get("validation_loss") is not None]
    width = max(1, -(-len(steps) // POINTS))
    parts = [steps[i : i + width] for i in range(0, len(steps), width)]
    return {"train": [[part[-1][0], mean(loss for _, loss in part)] for part in parts], "held_out": held}


def _words(row: Row, others: Sequence[Row]) -> tuple[list[str], list[str], str]:
    """Strengths, weaknesses, and where the method fits, each by a rule over measured values."""
    strong, weak = [], []
    verdict = row["against"].get("best", {}).get("verdict", "the best score")
    worse = verdict == "worse"
    if worse:
        weak.append("a score significantly below the best")
    else:
        strong.append("statistically tied with the best" if verdict == "no real difference" else "the best score")
    for key, factor, least, most in COSTS if len(others) > 2 else ():
        middle = median(each[key] for each in others if each is not row)
        if row[key] * factor <= middle:
            strong.append(least)
        elif row[key] >= middle * factor:
            weak.append(most)
    if max((one["low"] for one in row["latency"].values()), default=1.0) > 1.05:
        merged = "answers slower than the base unless merged"
        weak.append(merged if row["merges"] else "answers slower than the base and cannot be merged")
    if worse:
        return strong, weak, "where its costs decide, not the score"
    many = "small file" in strong or "few parameters" in strong
    return strong, weak, "many variants of one base" if many else "wherever the score decides"
