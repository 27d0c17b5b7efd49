"""Finished runs for the tests of exports; each is trained once, and every test has a copy of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from tests.conftest import review_rows, write_jsonl
from tests.exports.gguf_models import SHORT, rows


@pytest.fixture(scope="session")
def trained(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a finished run, which no test writes to; asked for once more it is the same."""
    made: dict[tuple[Any, ...], Path] = {}

    def train_once(*overrides: str, kind: str = "llama", task: str = "chat", base: Path | None = None) -> Path:
        key = (kind, task, base, *overrides)
        if key not in made:
            folder = tmp_path_factory.mktemp("trained") / "run"
            data = write_jsonl(folder.parent / "rows.jsonl", review_rows(24) if task == "classify" else rows(24))
            options = [f"model={base or model_folder(kind)}", f"data={data}", f"task={task}", *SHORT, f"run={folder}"]
            train(RunConfig.load(None, [*options, *overrides]))
            made[key] = folder
        return made[key]

    return train_once


@pytest.fixture
def run(trained: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The test's own copy of a finished run; asked for once more it is the same."""
    copies: dict[Path, Path] = {}

    def copy(*overrides: str, **wanted: Any) -> Path:
        folder = trained(*overrides, **wanted)
        if folder not in copies:
            copies[folder] = shutil.copytree(folder, tmp_path_factory.mktemp("copied") / "run")
        return copies[folder]

    return copy
