"""Answers at each evaluation: they are there, and change nothing of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig


def run(folder: Path, *more: str) -> list[dict[str, Any]]:
    overrides = ["data=builtin:reviews", "data.limit=40", "task=chat", "train.steps=6", "train.evaluate_every=3"]
    overrides += ["train.batch_size=4", "evaluate.rows=4", "evaluate.generate=0", "evaluate.forgetting=false", *more]
    train(RunConfig.load(None, [f"run={folder}", *overrides]))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if "loss" in key} for line in lines]


def test_a_few_prompts_are_answered_at_each_evaluation_and_the_run_stays_the_same(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", "evaluate.samples=0", "method.dropout=0.1")
    told = run(tmp_path / "told", "evaluate.samples=2", "method.dropout=0.1")
    assert plain == told
    assert not (tmp_path / "plain" / "samples.jsonl").exists()
    lines = [json.loads(line) for line in (tmp_path / "told" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [3, 3, 6, 6]
    assert all(line["prompt"] and line["answer"] in ("positive", "negative") and line["said"] for line in lines)


def test_a_classifier_has_none(tmp_path: Path) -> None:
    run(tmp_path / "run", "task=classify")
    assert not (tmp_path / "run" / "samples.jsonl").exists()
