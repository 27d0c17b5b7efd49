"""The same run, cut differently or cut off, gives the same curve and the same weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.core.errors import InputError, Stopped
from luthier.core.events import SILENT, Progress
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from tests.conftest import alpaca_rows, review_rows, write_jsonl
from tests.processes import Command

BASE = [
    "method.rank=4",
    "method.dropout=0.1",
    "train.lr=2e-2",
    "train.batch_size=8",
    "train.steps=9",
    "evaluate.generate=0",
    "evaluate.forgetting=false",
    "train.save_every=2",
    "train.evaluate_every=4",
    "train.keep=9",
]


def start(model: Path, data: Path, run: Path, *overrides: str, progress: Progress = SILENT) -> dict[str, Any]:
    config = RunConfig.load(None, [*BASE, f"model={model}", f"data={data}", f"run={run}", *overrides])
    return train(config, progress=progress)


def curve(run: Path) -> list[float]:
    return [record["loss"] for record in RunFolder(run).history() if "loss" in record]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (folder,) = (run / name for name in ("adapter", "model") if (run / name).is_dir())
    return dict(load_file(next(folder.glob("*.safetensors"))))


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(40))


def test_the_curve_does_not_depend_on_how_a_step_is_cut(
    model_folder: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    model = model_folder("llama")
    for name, micro in (("whole", 8), ("halves", 4), ("single", 1)):
        start(model, data, tmp_path / name, f"train.micro_batch={micro}", "method.dropout=0")
    whole = curve(tmp_path / "whole")
    assert len(whole) == 9 and whole[-1] < whole[0] - 0.1, "and it falls"
    for name in ("halves", "single"):
        assert curve(tmp_path / name) == pytest.approx(whole, abs=2e-5)


@pytest.mark.parametrize("key", ["train.gradient_checkpointing=true", "train.group_by_length=false"])
def test_what_only_saves_memory_or_time_changes_no_result(
    model_folder: Callable[..., Path], data: Path, tmp_path: Path, key: str
) -> None:
    for name, overrides in (("plain", []), ("other", [key])):
        start(model_folder("qwen2"), data, tmp_path / name, "method.dropout=0", *overrides)
    assert curve(tmp_path / "other") == pytest.approx(curve(tmp_path / "plain"), abs=2e-5)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    model_folder: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        start(model_folder("llama"), data, tmp_path / name, f"seed={seed}")
    assert curve(tmp_path / "a") == curve(tmp_path / "b") != curve(tmp_path / "c")
    assert same(tmp_path / "a", tmp_path / "b")


class StopAt(Progress):
    """Presses ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
        if record["step"] == self.at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("case", ["lora", "full", "classify", "bf16"])
def test_a_stopped_run_goes_on_bit_for_bit(
    model_folder: Callable[..., Path], data: Path, tmp_path: Path, case: str
) -> None:
    overrides = {"lora": [], "full": ["method=full"], "classify": ["task=classify"], "bf16": ["train.precision=bf16"]}[
        case
    ]
    if case == "classify":
        data = write_jsonl(tmp_path / "reviews.jsonl", review_rows(60))
    base = [key for key in BASE if case != "full" or not key.startswith("method.")]
    common = [*base, f"model={model_folder('llama')}", f"data={data}", *overrides]

    def go(run: Path, progress: Progress = SILENT) -> dict[str, Any]:
        return train(RunConfig.load(None, [*common, f"run={run}"]), progress=progress)

    go(tmp_path / "whole")
    for at in (1, 5, 8) if case == "lora" else (5,):
        run = tmp_path / f"stopped-{at}"
        with pytest.raises(Stopped) as stop:
            go(run, StopAt(at))
        assert stop.value.exit_code == 75 and not (run / "result.json").exists()
        go(run)
        assert curve(run) == curve(tmp_path / "whole")
        assert same(run, tmp_path / "whole")


def test_a_run_killed_at_any_time_goes_on_from_its_last_whole_checkpoint(
    model_folder: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    arguments = [*BASE, f"model={model_folder('llama')}", f"data={data}"]
    start(model_folder("llama"), data, tmp_path / "whole")
    run = tmp_path / "killed"
    process = Command(["train", *arguments, f"run={run}"])
    process.wait_for((run / "checkpoints/step-000004").exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (run / "checkpoints").is_dir()
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    (newest / "state.safetensors").write_bytes(b"torn")  # as if the disk had lied
    start(model_folder("llama"), data, run)
    assert newest.with_name(newest.name + ".corrupt").is_dir()
    assert curve(run) == curve(tmp_path / "whole") and same(run, tmp_path / "whole")


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_new_head_may_have_a_rate_of_its_own(
    model_folder: Callable[..., Path], data: Path, tmp_path: Path, kind: str
) -> None:
    reviews = write_jsonl(tmp_path / "reviews.jsonl", review_rows(60))
    still = ["task=classify", "train.lr=1e-12", "train.weight_decay=0", "train.warmup=0"]
    start(model_folder(kind), reviews, tmp_path / "slow", *still, "train.head_lr=1e-12")
    result = start(model_folder(kind), reviews, tmp_path / "fast", *still)
    assert result["lr"] == 1e-12 and result["head_lr"] > 1e-3
    assert json.loads((tmp_path / "fast/metrics.jsonl").read_text().splitlines()[0])["lr"] == 1e-12
    slow, fast = weights(tmp_path / "slow"), weights(tmp_path / "fast")
    moved = {name for name in slow if (slow[name] - fast[name]).abs().max() > 1e-6}
    assert moved == {name for name in slow if "score" in name or "classifier" in name} and moved
    with pytest.raises(InputError, match=r"train\.head_lr"):
        start(model_folder(), data, tmp_path / "chat", "train.head_lr=1e-2")


def test_a_finished_run_is_not_trained_again(model_folder: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    first = start(model_folder("llama"), data, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert start(model_folder("llama"), data, tmp_path / "run") == json.loads(json.dumps(first))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_rising_held_out_loss_stops_the_run_and_the_best_weights_are_kept(
    model_folder: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    result = start(
        model_folder("llama"),
        data,
        tmp_path / "run",
        "train.lr=0.3",
        "train.steps=60",
        "train.evaluate_every=2",
        "train.save_every=50",
        "train.patience=3",
        "train.schedule=constant",
        "train.keep=1",
    )
    history = {r["step"]: r["validation_loss"] for r in RunFolder(tmp_path / "run").history() if "validation_loss" in r}
    best = min(history, key=lambda step: history[step])
    assert result["stopped_early"] and result["steps"] == best + 6 < 60
    assert result["kept_step"] == best and result["kept_best"]
    assert result["tuned"]["loss"]["value"] == pytest.approx(history[best], abs=1e-4)


def test_a_loss_that_is_no_number_stops_before_it_spoils_the_weights(
    model_folder: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    from luthier.core.errors import Diverged

    broken = tmp_path / "broken"
    shutil.copytree(model_folder("llama"), broken)
    from safetensors.torch import save_file

    tensors = load_file(broken / "model.safetensors")
    for name in ("model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name].mul_(1e30)  # finite, but their products are not
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Diverged, match=r"step 1: .*the step was not taken"):
        start(broken, data, tmp_path / "run", "evaluate.before=false")


def test_gradient_checkpointing_is_on_where_the_recipe_says_so(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers alone cannot tell: they are the same."""
    from luthier.training.step import Loop

    seen: list[bool] = []
    gradient = Loop.gradient

    def watched(loop: Any, *args: Any) -> Any:
        seen.append(any(getattr(module, "gradient_checkpointing", False) for module in loop.model.modules()))
        return gradient(loop, *args)

    monkeypatch.setattr(Loop, "gradient", watched)
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(8))
    for on in (True, False):
        own = [f"model={model_folder('llama')}", f"data={data}", f"run={tmp_path / str(on)}", "train.steps=1"]
        own += [f"train.gradient_checkpointing={on}", "data.validation=none", "evaluate.before=false"]
        train(RunConfig.load(None, own))
    assert seen == [True, False]
