"""A small run to start elsewhere, the same run made here, and programs that stand for those of a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from tests.conftest import review_rows, write_jsonl

ODD = """it's a "run" $HOME; `ls` 琴"""
"""A name of a folder that a shell would take apart."""


@pytest.fixture
def recipe(model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of 60 short steps, on a CPU, in a working folder with an odd name."""
    folder = tmp_path / ODD
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_jsonl(folder / "rows.jsonl", review_rows(40))
    options = [f"model={model_folder('llama')}", "model.device=cpu", "data=rows.jsonl", "task=classify"]
    options += ["train.steps=60", "train.batch_size=4", "train.save_every=1", "evaluate.generate=0", "method.rank=2"]
    (folder / "recipe.yaml").write_text(RunConfig.load(None, options).dump())
    return folder / "recipe.yaml"


Program = Callable[[str, str], Path]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Puts a shell script into the PATH by name, before all others; returns the folder where it may leave things."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LEFT", str(tmp_path))

    def make(name: str, script: str) -> Path:
        (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (folder / name).chmod(0o755)
        return tmp_path

    return make


def same_run(one: Path, other: Path) -> None:
    """Fails unless both runs have the same losses, to the bit, and the same weights."""
    first, second = RunFolder(one), RunFolder(other)
    losses = [[line["loss"] for line in run.history() if "loss" in line] for run in (first, second)]
    assert losses[0] == losses[1] and losses[0]
    names = [sorted(file.name for file in run.weights().glob("*.safetensors")) for run in (first, second)]
    assert names[0] == names[1] and names[0]
    for name in names[0]:
        assert (first.weights() / name).read_bytes() == (second.weights() / name).read_bytes(), name


MEASURED_ANEW = (
    "memory",
    "tokens_per_second",
    "seconds",
    "seconds_to_best",
    "latency",
    "cost",
    "strengths",
    "weaknesses",
)
MEASURED_ANEW += ("fits", "front_seconds", "run")


def same_table(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Fails unless two comparisons have the same numbers, but for time, memory and what follows from them."""
    for key in ("metric", "higher_is_better", "base", "best", "steps", "seeds", "tokens"):
        assert one[key] == other[key], key
    tables = [
        [{key: value for key, value in row.items() if key not in MEASURED_ANEW} for row in each["rows"]]
        for each in (one, other)
    ]
    assert sorted(tables[0], key=lambda row: row["arm"]) == sorted(tables[1], key=lambda row: row["arm"])
