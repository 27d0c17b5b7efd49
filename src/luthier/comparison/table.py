"""The table of a comparison, from what its runs have left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

from luthier.comparison.claims import claims
from luthier.comparison.significance import Draws, differences, draws, metric, pareto
from luthier.core.errors import InputError
from luthier.core.files import read_object
from luthier.evaluation.records.context import Record, restored
from luthier.evaluation.scores import primary_metric
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder

POINTS = 60
"""Of a loss curve, at most."""
Result = dict[str, Any]


def rows_of(
    folder: Path,
    arms: Sequence[tuple[str, RunConfig, str]],
    seeds: Sequence[int],
    failed: Mapping[tuple[str, int], str],
) -> dict[str, Any]:
    """{metric, higher_is_better, base, best, rows}: a row for each method, those that did not run with the reason."""
    runs = {name: [RunFolder(folder / "arms" / f"{name}-s{seed}") for seed in seeds] for name, _, _ in arms}
    results = {name: [_result(run) for run in own if run.result.is_file()] for name, own in runs.items()}
    first = next((made[0] for made in results.values() if made), None)
    if first is None:
        return {
            "metric": "",
            "higher_is_better": True,
            "base": None,
            "best": "",
            "rows": [_missing(name, config, reason, seeds, failed) for name, config, reason in arms],
        }
    name_of_score = primary_metric(first["tuned"])
    function, higher = metric(name_of_score)
    found: dict[str, Draws] = {}
    for name, own in runs.items():
        if records := [_records(run) for run in own if run.result.is_file()]:
            found[name] = draws(function, records)
    whole = {n: drawn for n, drawn in found.items() if len(results[n]) == len(seeds) and isfinite(drawn.value)}
    best = (max if higher else min)(whole or found, key=lambda each: found[each].value)
    against = {"best": differences(whole, best, higher=higher) if best in whole else {}}
    if "full" in whole:
        against["full"] = differences(whole, "full", higher=higher)
    rows = [
        _row(name, config, runs[name], results[name], found[name], name_of_score, against, failed)
        if results[name]
        else _missing(name, config, reason, seeds, failed)
        for name, config, reason in arms
    ]
    done = {row["arm"]: row for row in rows if row["status"] == "done"}
    for cost in ("trainable", "seconds"):
        front = pareto({name: (row[cost], row["score"]["value"]) for name, row in done.items()}, higher=higher)
        for name, row in done.items():
            row[f"front_{cost}"] = name in front
    _relate(done)
    return {
        "metric": name_of_score,
        "higher_is_better": higher,
        "base": first["base"].get(name_of_score),
        "best": best,
        "comparisons": len(against["best"]),
        "examples": first["validation_examples"],
        "measured_on": first["measured_on"],
        "rows": _sorted(rows, higher),
    }


def _sorted(rows: list[dict[str, Any]], higher: bool) -> list[dict[str, Any]]:
    """The best first; what did not run last."""
    return sorted(
        rows,
        key=lambda row: (row["status"] != "done", (-1 if higher else 1) * row["score"]["value"] if row["score"] else 0),
    )


def _result(run: RunFolder) -> Result:
    return run.read_json(run.result)


def _records(run: RunFolder) -> list[Record]:
    lines = run.checked(run.predictions).read_text(encoding="utf-8").splitlines()
    return restored([json.loads(line)["tuned"] for line in lines])


def _missing(
    name: str, config: RunConfig, reason: str, seeds: Sequence[int], failed: Mapping[tuple[str, int], str]
) -> dict[str, Any]:
    why = [text for (arm, _), text in failed.items() if arm == name]
    return {
        "arm": name,
        "method": config.method.name,
        "quantize": config.model.quantize,
        "seeds": [],
        "score": None,
        "trainable": None,
        "share": None,
        "adapter_bytes": None,
        "memory": None,
        "tokens_per_second": None,
        "seconds": None,
        "status": "failed" if why and not reason else "not run",
        "reason": reason or "; ".join(dict.fromkeys(why)) or "not run yet",
        **_told(name, config),
    }


def _told(name: str, config: RunConfig) -> dict[str, Any]:
    """Core idea, and what papers claim."""
    idea = (type(config.method).__module__ and __import__(type(config.method).__module__, fromlist=["x"]).__doc__) or ""
    return {"idea": idea.strip().splitlines()[0], "claims": claims(name, config.method.name)}


def _row(
    name: str,
    config: RunConfig,
    runs: Sequence[RunFolder],
    results: Sequence[Result],
    drawn: Draws,
    score: str,
    against: Mapping[str, Mapping[str, Any]],
    failed: Mapping[tuple[str, int], str],
) -> dict[str, Any]:
    low, high = drawn.interval
    one = results[0]
    whole = [run for run in runs if run.result.is_file()]
    made = {
        "arm": name,
        "method": config.method.name,
        "quantize": config.model.quantize,
        "seeds": [run_seed(run) for run in whole],
        "score": {"value": drawn.value, "low": low, "high": high},
        "trainable": one["trainable"],
        "share": one["trainable"] / one["parameters"],
        "adapter_bytes": one["weights_bytes"],
        "memory": max(r["memory"]["measured"] for r in results),
        "tokens_per_second": mean(r["tokens_per_second"] for r in results),
        "seconds": mean(r["train_seconds"] for r in results),
        "seconds_to_best": mean(_to_best(run) for run in whole),
        "lr": one["lr"],
        "kept_step": one["kept_step"],
        "merges": type(config.method).mergeable,
        "settings": config.method.spec(),
        "latency": _latency(whole[0]),
        "curve": _curve(whole[0]),
        "run": str(whole[0].path),
        "status": "done",
        **_told(name, config),
        "reason": "; ".join(f"seed {seed}: {text}" for (arm, seed), text in failed.items() if arm == name),
        "against": {who: verdicts[name] for who, verdicts in against.items() if name in verdicts},
    }
    if forgotten := one.get("forgetting"):  # of the first seed
        made["forgetting"] = forgotten["all"]["difference"]
    return made


def run_seed(run: RunFolder) -> int:
    """The seed of a run, from its folder's name."""
    return int(run.path.name.rpartition("-s")[2])


def _to_best(run: RunFolder) -> float:
    """Seconds of training up to the lowest held-out loss."""
    seconds, best, at = 0.0, float("inf"), 0.0
    for record in run.history():
        seconds += (record.get("seconds") or 0.0) if "loss" in record else 0.0
        loss = record.get("validation_loss")
        if loss is not None and loss < best:
            best, at = loss, seconds
    return at or seconds


def _curve(run: RunFolder) -> dict[str, list[list[float]]]:
    """[step, loss] of training, thinned, and of the held-out rows."""
    history = run.history()
    steps = [[r["step"], r["loss"]] for r in history if r.get("loss") is not None]
    held = [[r["step"], r["validation_loss"]] for r in history if r.get("validation_loss") is not None]
    width = max(1, -(-len(steps) // POINTS))
    thinned = [
        [part[-1][0], mean(loss for _, loss in part)]
        for part in (steps[i : i + width] for i in range(0, len(steps), width))
    ]
    return {"train": thinned, "held_out": held}


def _latency(run: RunFolder) -> dict[str, Any]:
    try:
        return read_object(run.path / "latency.json")
    except InputError:
        return {}


def _relate(done: Mapping[str, dict[str, Any]]) -> None:
    """Cost beside full fine-tuning's, and in words what the figures say of each method."""
    full = done.get("full")
    for row in done.values():
        row["cost"] = (
            {
                "time": row["seconds"] / full["seconds"],
                "memory": row["memory"] / full["memory"],
                "bytes": row["adapter_bytes"] / full["adapter_bytes"],
            }
            if full
            else {}
        )
        row["strengths"], row["weaknesses"], row["fits"] = _words(row, done)


def _words(row: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str], str]:
    """Strengths, weaknesses, and where the method fits, each by a rule over measured values."""
    strong, weak = [], []
    verdict = row["against"].get("best", {}).get("verdict", "the best score")
    if verdict != "worse":
        strong.append("no score is really better" if verdict == "no real difference" else "the best score")
    else:
        weak.append("a score that is really below the best")
    others = list(done.values())

    def rank(key: str) -> float:
        return float(sum(each[key] < row[key] for each in others) / max(1, len(others) - 1))

    for key, least, most in (
        ("trainable", "few parameters", "many parameters"),
        ("adapter_bytes", "small file", "large file"),
        ("memory", "little memory", "much memory"),
        ("seconds", "quick to train", "slow to train"),
    ):
        if len(others) > 2 and rank(key) <= 0.25:
            strong.append(least)
        elif len(others) > 2 and rank(key) >= 0.75:
            weak.append(most)
    slower = max((part["low"] for part in row["latency"].values()), default=1.0)
    if slower > 1.05:
        weak.append("answers slower than the base" + (" unless merged" if row["merges"] else ", and cannot be merged"))
    fits = "wherever the score decides" if verdict != "worse" else "where its costs decide, not the score"
    if verdict != "worse" and ("small file" in strong or "few parameters" in strong):
        fits = "many variants of one base"
    return strong, weak, fits
