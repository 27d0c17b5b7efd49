"""One small run, made through the API, that the tests look at without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import luthier
from tests.conftest import alpaca_rows


@pytest.fixture(scope="session")
def settings(model_folder: Callable[..., Path]) -> dict[str, Any]:
    """What every small run here has in common; its rows are in memory."""
    return {
        "model": model_folder("llama"),
        "data": {"path": alpaca_rows(40), "validation": 0.2},
        "method": {"name": "lora", "rank": 4},
        "train": {"steps": 4, "batch_size": 4, "lr": 1e-2, "keep_best": False, "evaluate_every": 2},
        "evaluate": {"generate": 3, "max_new_tokens": 8, "forgetting": False},
    }


@pytest.fixture(scope="session")
def trained(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[luthier.Run]:
    run = luthier.train(**settings, run=tmp_path_factory.mktemp("api") / "run")
    yield run
    run.close()


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Rows in memory are kept in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
