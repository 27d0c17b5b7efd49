"""Finished and stopped runs that strangers' hands may touch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from tests.conftest import alpaca_rows, write_jsonl

LARGE = os.environ.get("LUTHIER_STRANGERS") == "large"
"""`make test-strangers` tries every fault against every command; the suite tries each against one of them."""

SMALL = [
    "train.steps=4",
    "train.save_every=2",
    "train.lr=2e-2",
    "train.batch_size=4",
    "data.validation=0.2",
    "evaluate.generate=2",
    "evaluate.max_new_tokens=4",
    "evaluate.forgetting=false",
    "method.rank=2",
    "data.cache=false",
    "evaluate.cache=false",
    "data.workers=1",
]


@pytest.fixture(scope="session")
def finished(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody touched; no test may write to it."""
    return _run(model_folder(), tmp_path_factory.mktemp("finished"), "seed=1")


@pytest.fixture(scope="session")
def another(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same recipe with another seed."""
    return _run(model_folder(), tmp_path_factory.mktemp("another"), "seed=2")


def _run(model: Path, folder: Path, *overrides: str) -> Path:
    rows = write_jsonl(folder / "rows.jsonl", alpaca_rows(30))
    own = [f"model={model}", f"data={rows}", f"run={folder / 'run'}"]
    train(RunConfig.load(None, [*SMALL, *own, *overrides]))
    return folder / "run"


def copied(run: Path, to: Path) -> Path:
    """A run's folder and its data, at the same path within `to`, so that its recipe holds."""
    return Path(shutil.copytree(run, to))
