"""Weights, losses and scores that are no finite numbers: found by name, never saved, never in a JSON file."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.core.errors import Diverged, InputError, ModelError
from luthier.core.files import write_json, write_jsonl
from luthier.core.strict_json import to_json
from luthier.evaluation.records.context import restored_records
from luthier.methods.layers.loading import load_adapter
from luthier.models.files import not_finite, weights_of
from luthier.pipeline import train as api
from luthier.pipeline.measure import Measured
from luthier.recipe.config import RunConfig
from luthier.recipe.identity import read_recipe
from luthier.reports.run_report import figure, worst
from luthier.runs.folder import RunFolder
from luthier.training import checkpoint as checkpoints
from luthier.training.step import Loop
from tests.conftest import ROOT

OWN = [
    "data=builtin:reviews",
    "data.limit=16",
    "data.validation_limit=8",
    "train.batch_size=8",
    "task=classify",
    "evaluate.before=false",
    "method.rank=2",
    "method.targets=q_proj",
]


def train(model: Path | str, place: Path, *overrides: str) -> dict[str, Any]:
    return api.train(RunConfig.load(None, [f"model={model}", f"run={place}", *OWN, *overrides]))


@pytest.fixture
def broken(model_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def made(value: float, name: str = "model.layers.0.mlp.down_proj.weight") -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(model_folder("llama"), folder)
        tensors = load_file(folder / "model.safetensors")
        tensors[name].view(-1)[-1] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return made


# Training


@pytest.mark.parametrize(
    "extra", [["data.validation=none"], [], ["train.on_nan=skip"]], ids=["no rows", "rows", "skip"]
)
def test_a_last_step_that_ruins_the_weights_stops_the_run(
    model_folder: Callable[..., Path], tmp_path: Path, extra: list[str]
) -> None:
    with pytest.raises(Diverged, match=r"step 1 left NaN or infinite weights, among them .*lora_") as caught:
        train(model_folder("llama"), tmp_path / "run", "train.steps=1", "train.lr=1e308", *extra)
    assert caught.value.exit_code == 2
    assert "nothing was saved" in str(caught.value)
    assert not (tmp_path / "run" / "adapter").exists()
    assert not (tmp_path / "run" / "result.json").exists()
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


@pytest.fixture
def ruin(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets a step leave one NaN in the weights, as an optimizer that overflows does."""

    def made(step: int) -> None:
        take = Loop.take

        def taken(loop: Loop, index: int, *, leave_out: bool = False) -> bool:
            done = take(loop, index, leave_out=leave_out)
            if index == step:
                with torch.no_grad():
                    next(p for p in loop.model.parameters() if p.requires_grad).view(-1)[0] = float("nan")
            return done

        monkeypatch.setattr(Loop, "take", taken)

    return made


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_the_last_good_weights_are_kept_and_the_run_goes_on_from_them(
    model_folder: Callable[..., Path],
    tmp_path: Path,
    ruin: Callable[[int], None],
    policy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = ["train.steps=6", "train.save_every=2", "data.validation=none", f"train.on_nan={policy}"]
    whole = train(model_folder("llama"), tmp_path / "whole", *own)
    ruin(3)  # nothing looks at step 3; the loss of step 4 is NaN, which stops with `stop` and is left out with `skip`
    with pytest.raises(Diverged, match=r"left NaN or infinite weights.*step-000002 holds those before"):
        train(model_folder("llama"), tmp_path / "run", *own)
    found, damaged = checkpoints.newest(tmp_path / "run" / "checkpoints")
    assert (found and found.name, damaged) == ("step-000002", [])
    monkeypatch.undo()
    again = train(model_folder("llama"), tmp_path / "run", *own)
    assert again["steps"] == whole["steps"] == 6
    tuned = [load_file(tmp_path / each / "adapter" / "adapter_model.safetensors") for each in ("whole", "run")]
    assert all(torch.equal(tuned[0][name], tuned[1][name]) for name in tuned[0])


def test_a_held_out_loss_that_is_no_number_stops_the_run_and_is_not_the_best(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter([0.7, float("inf")])
    monkeypatch.setattr("luthier.training.trainer.held_out_loss", lambda *_: next(seen))
    with pytest.raises(
        Diverged, match=r"step 4: the held-out loss is inf, with finite weights.*step-000002 holds"
    ) as caught:
        train(model_folder("llama"), tmp_path / "run", "train.steps=4", "train.evaluate_every=2")
    assert [each.name for each in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    assert "train.on_nan=skip" not in caught.value.fix  # it was the last one: nothing comes after it
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["validation_loss"] is None


def test_with_skip_such_an_evaluation_is_left_out_where_a_better_one_is_kept(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter([0.7, float("inf")])
    monkeypatch.setattr("luthier.training.trainer.held_out_loss", lambda *_: next(seen))
    own = ["train.steps=4", "train.evaluate_every=2", "train.on_nan=skip"]
    assert train(model_folder("llama"), tmp_path / "run", *own)["kept_step"] == 2
    seen = iter([float("inf"), float("inf")])
    with pytest.raises(Diverged, match="step 4: the held-out loss is inf"):
        train(model_folder("llama"), tmp_path / "none", *own)


def test_a_checkpoint_of_ruined_weights_is_refused_and_the_run_goes_on_without_it(
    model_folder: Callable[..., Path], tmp_path: Path, ruin: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions before this one wrote such checkpoints."""
    own = ["train.steps=4", "train.save_every=2", "data.validation=none"]
    ruin(2)
    monkeypatch.setattr("luthier.training.tuned.not_finite", lambda _: "")
    with pytest.raises(Diverged, match="step 3: the loss is nan"):
        train(model_folder("llama"), tmp_path / "run", *own)
    monkeypatch.undo()
    with pytest.raises(
        Diverged, match=r"step 2 left NaN or infinite weights.*step-000002; remove it to resume before it"
    ):
        train(model_folder("llama"), tmp_path / "run", *own)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000002")
    assert train(model_folder("llama"), tmp_path / "run", *own)["steps"] == 4


# Loading


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_base_with_such_weights_is_found_before_it_is_measured(
    broken: Callable[..., Path], tmp_path: Path, value: float
) -> None:
    folder = broken(value)
    with pytest.raises(
        ModelError, match=r"layers\.0\.mlp\.down_proj\.weight of .*model\.safetensors holds NaN"
    ) as caught:
        train(folder, tmp_path / "run", "train.steps=1", "evaluate.before=true")
    assert "download the model again" in caught.value.fix
    assert not (tmp_path / "run").exists()


def test_a_base_in_several_files_names_the_one(broken: Callable[..., Path], tmp_path: Path) -> None:
    folder = broken(float("nan"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    bad = {name: value for name, value in tensors.items() if "down_proj" in name}
    rest = {name: value for name, value in tensors.items() if name not in bad}
    save_file(rest, folder / "model-1.safetensors", metadata={"format": "pt"})
    save_file(bad, folder / "model-2.safetensors", metadata={"format": "pt"})
    index = {name: "model-2.safetensors" if name in bad else "model-1.safetensors" for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    with pytest.raises(ModelError, match=r"of .*model-2\.safetensors holds NaN"):
        train(folder, tmp_path / "run", "train.steps=1")


def test_an_adapter_with_such_weights_is_neither_evaluated_nor_served(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    place = tmp_path / "run"
    train(model_folder("llama"), place, "train.steps=1")
    method, file = read_recipe(RunFolder(place)).method, place / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    said = rf"adapter_model\.safetensors: the weight {re.escape(name)} holds NaN"
    with pytest.raises(InputError, match=said):
        method.load(nn.Linear(1, 1), place / "adapter")
    with pytest.raises(InputError, match=said):  # as chat and serve load it
        load_adapter(nn.Linear(1, 1), place / "adapter")


def test_tensors_are_judged_by_all_they_hold() -> None:
    finite = torch.full((1000,), 3e38)  # whose sum is infinite
    assert not_finite([("a", finite), ("b", torch.ones(3, dtype=torch.bfloat16)), ("c", torch.ones(2).int())]) == ""
    assert not_finite([("a", finite), ("b", torch.tensor([float("inf"), float("-inf")]))]) == "b"
    assert not_finite([("a", torch.tensor([1.0, float("nan")], dtype=torch.float16))]) == "a"
    assert not_finite([("a", torch.empty(3, device="meta")), ("b", torch.empty(0))]) == ""


def test_the_scales_of_packed_weights_are_looked_at() -> None:
    model = nn.Linear(2, 2, bias=False).requires_grad_(False)
    model.weight.SCB = torch.tensor([1.0, float("nan")])  # type: ignore[attr-defined]
    assert not_finite(weights_of(model)) == "weight"


# JSON


def read(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_no_json_holds_what_is_no_number(tmp_path: Path) -> None:
    value = {"a": float("nan"), "b": [1.5, (float("inf"), {"c": float("-inf")})], "d": "NaN", "e": None}
    wanted = {"a": None, "b": [1.5, [None, {"c": None}]], "d": "NaN", "e": None}
    assert read(to_json(value)) == wanted
    write_json(tmp_path / "a.json", value)
    write_jsonl(tmp_path / "a.jsonl", [value])
    folder = RunFolder(tmp_path)
    folder.log({"step": 1, "loss": float("nan")})
    assert read((tmp_path / "a.json").read_text()) == read((tmp_path / "a.jsonl").read_text()) == wanted
    assert read(folder.metrics.read_text()) == {"step": 1, "loss": None}


def test_all_json_that_is_written_goes_through_one_function() -> None:
    """Where Python's own is called, it makes a key to be hashed, a part of a message, or text that holds no number."""
    own = {
        "arguments",
        "explain",
        "strict_json",
        "measure",
        "vocabulary",
        "adalora",
        "stream",
        "cache",
        "tools",
        "store",
        "tool_calls",
        "files",
        "shell",
        "launch",
        "guess",
        "template_limits",
    }
    for path in (ROOT / "src" / "luthier").rglob("*.py"):
        assert path.stem in own or "json.dump" not in path.read_text(encoding="utf-8"), path


def test_scores_that_were_no_numbers_can_be_read_and_shown_again() -> None:
    kept = read(to_json([{"loss_sum": float("inf"), "targets": 3, "chosen": "a", "label": "a"}]))
    assert math.isnan(restored_records(kept)[0]["loss_sum"])
    assert math.isnan(Measured(records=kept).records[0]["loss_sum"])
    good = {"loss_sum": 1.0, "targets": 2}
    assert worst([{"tuned": good}, {"tuned": kept[0]}])[0]["tuned"] is kept[0]
    assert figure("loss", None) == figure("loss", float("nan")) == figure("accuracy", None, sign=True) == "NaN"
