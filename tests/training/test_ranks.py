"""Several processes train as one: the same curve and weights, whatever their number, and nobody hangs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from tests.conftest import alpaca_rows, write_jsonl
from tests.training.ranks import trained_on
from tests.training.test_training import curve, weights

BASE = ["train.batch_size=8", "train.lr=2e-2", "train.steps=8", "train.save_every=4", "train.evaluate_every=4"]
BASE += ["evaluate.generate=4", "evaluate.max_new_tokens=4", "train.keep=9"]


def test_two_ranks_learn_what_one_process_learns(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(40))
    recipe = [*BASE, f"model={model_folder('llama')}", f"data={data}", "method=lora", "method.rank=4"]
    whole = train(RunConfig.load(None, [*recipe, f"run={tmp_path / 'one'}"]))
    leader, follower = trained_on(2, tmp_path / "two", recipe)
    assert "value" in leader, leader
    assert follower == {"value": {}}
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-6)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)
    assert leader["value"]["tuned"]["loss"]["value"] == pytest.approx(whole["tuned"]["loss"]["value"], rel=1e-5)
