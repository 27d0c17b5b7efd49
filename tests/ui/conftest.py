"""Folders of runs that no training made, and the page's application over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier.recipe.config import RunConfig
from luthier.ui.guard import Token
from luthier.ui.server import create_app

PORT = 8765
HOST = f"127.0.0.1:{PORT}"
ORIGIN = f"http://{HOST}"


def write_run(folder: Path, *, steps: int = 20, finished: bool = True, **settings: Any) -> Path:
    """A run's folder, as far as a list of runs reads it."""
    folder.mkdir(parents=True)
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    recipe = RunConfig.load(None, ["data=rows.jsonl", "train.steps=20", *overrides])
    (folder / "recipe.yaml").write_text(recipe.dump())
    (folder / "environment.json").write_text("{}")
    lines = [
        {"step": step, "loss": 4 / step, "lr": 1e-3, "grad_norm": 1.0, "tokens": 100, "seconds": 0.5, "memory": 1e9}
        for step in range(1, steps + 1)
    ]
    lines.insert(steps // 2, {"step": steps // 2, "validation_loss": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        score = {"value": 0.75, "low": 0.7, "high": 0.8, "higher_is_better": True}
        result = {"primary_metric": "accuracy", "steps": steps, "train_seconds": 10.0, "forgetting": {}}
        result |= {"base": {"accuracy": {**score, "value": 0.5}}, "tuned": {"accuracy": score}, "difference": {}}
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with two runs."""
    folder = tmp_path / "runs"
    write_run(folder / "first")
    write_run(folder / "deep" / "second", finished=False, method="bitfit")
    return folder


@pytest.fixture
def token() -> Token:
    return Token()


@pytest.fixture
def client(root: Path, token: Token, tmp_path: Path) -> Iterator[TestClient]:
    """A browser that opened the printed address."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.jsonl").write_text('{"text": "a", "label": "x"}\n')
    app = create_app(root, [data], token=token, host="127.0.0.1", port=PORT)
    with TestClient(app, base_url=ORIGIN, headers={"origin": ORIGIN}, follow_redirects=False) as browser:
        assert browser.get(f"/?token={token.word}").status_code == 303
        yield browser


@pytest.fixture
def stranger(client: TestClient) -> Callable[..., TestClient]:
    """Somebody at the same server without the cookie."""

    def make(**options: Any) -> TestClient:
        return TestClient(client.app, base_url=ORIGIN, follow_redirects=False, **options)

    return make
