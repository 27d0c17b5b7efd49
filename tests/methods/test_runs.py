"""A stopped run of every method goes on bit for bit: AdaLoRA's budget, P-Tuning's network and dropout come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import Stopped
from luthier.core.events import SILENT, Progress
from luthier.methods.base import TRAINING
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from tests.conftest import alpaca_rows, review_rows, write_jsonl
from tests.methods.zoo import SPECS, cells, fused, method
from tests.training.test_training import StopAt, curve, same

pytestmark = pytest.mark.matrix

STEPS = 8
STOPS = {"adalora": (3, 6, 7)}
"""AdaLoRA's budget falls up to step 6, where the ranks become final. The others are stopped once, after step 3."""

ENCODED = ("prefix", "p_tuning", "p_tuning (lstm)", "mam (mlp)")
"""A network makes the weights while training: a checkpoint must hold it, the finished adapter must not."""


def start(name: str, kind: str, model: Path, data: Path, run: Path, progress: Progress = SILENT) -> None:
    settings = dict(SPECS[name])
    if name == "fusion":
        settings["adapters"] = ",".join(fused(kind, model))
    if "dropout" in type(method(name)).model_fields:
        settings["dropout"] = 0.2
    overrides = [
        f"method={name.split(' ', maxsplit=1)[0]}",
        *(f"method.{key}={value}" for key, value in settings.items()),
        f"task={'classify' if kind == 'bert' else 'chat'}",
        f"model={model}",
        f"data={data}",
        f"run={run}",
        f"train.steps={STEPS}",
        "train.batch_size=4",
        "train.lr=2e-2",
        "train.save_every=99",
        "data.validation=none",
        "evaluate.before=false",
        "evaluate.generate=0",
        "evaluate.forgetting=false",
    ]
    train(RunConfig.load(None, overrides), progress=progress)


def rank_pattern(run: Path) -> Any:
    return json.loads((run / "adapter" / "adapter_config.json").read_text())["rank_pattern"]


@pytest.mark.parametrize(("name", "kind"), cells(["qwen2", "bert"]))
def test_9_a_stopped_run_goes_on_bit_for_bit(
    name: str, kind: str, model_folder: Callable[..., Path], tmp_path: Path, kept: Any
) -> None:
    model = model_folder(kind)
    rows = review_rows(24) if kind == "bert" else alpaca_rows(24)
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    whole = tmp_path / "whole"
    start(name, kind, model, data, whole)
    assert len(set(curve(whole))) == STEPS
    for at in STOPS.get(name, (3,)):
        run = tmp_path / f"stopped-{at}"
        with pytest.raises(Stopped):
            start(name, kind, model, data, run, StopAt(at))
        (checkpoint,) = (run / "checkpoints").glob("step-*")
        assert checkpoint.name == f"step-{at:06d}"
        if name in ENCODED:
            assert (checkpoint / "weights" / TRAINING).is_file()
        start(name, kind, model, data, run)
        assert curve(run) == curve(whole), at
        assert same(run, whole), at
        assert not list(run.glob(f"*/{TRAINING}")), "what only training needs is no part of the result"
        if name == "adalora":
            assert rank_pattern(run) == rank_pattern(whole) is not None
            assert {keep for layer in rank_pattern(run).values() for keep in layer} == {True, False}
    kept(name, kind, "9")


@pytest.mark.parametrize("name", ["lora", "p_tuning (lstm)", "adalora"])
def test_saving_changes_nothing_of_what_follows(
    name: str, model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout draws from the same random numbers whether or not checkpoints are written in between."""
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(24))
    start(name, "qwen2", model_folder("qwen2"), data, tmp_path / "seldom")
    monkeypatch.setattr("luthier.training.trainer.Trainer._due", lambda self, interval: True)
    start(name, "qwen2", model_folder("qwen2"), data, tmp_path / "often")
    assert curve(tmp_path / "often") == curve(tmp_path / "seldom")
    assert same(tmp_path / "often", tmp_path / "seldom")
