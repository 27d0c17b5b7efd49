"""The loop's own step: taken one by one, steps give what `train` gives, to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.core.files import sha256


@pytest.mark.parametrize(
    ("method", "train"),
    [
        ({"name": "lora", "rank": 4, "dropout": 0.3}, {}),
        ({"name": "lora", "rank": 4}, {"micro_batch": 2, "packing": False, "warmup": 0.5}),
        ({"name": "adalora"}, {"steps": 6}),
        ("pissa", {"precision": "bf16"}),
        ("full", {"optimizer": "sgd"}),
    ],
    ids=["dropout", "micro-batches", "adalora", "pissa-bf16", "full"],
)
def test_steps_one_by_one_are_those_of_train(
    settings: dict[str, Any], tmp_path: Path, method: Any, train: dict[str, Any]
) -> None:
    own = {**settings, "method": method, "train": {**settings["train"], **train}}
    run = luthier.train(**own, run=tmp_path / "run")
    wanted = [(line["loss"], line["grad_norm"], line["tokens"]) for line in run.history if "loss" in line]
    with luthier.prepare(**own) as ready:
        found = []
        for rows in ready.batches():
            made = ready.gradient(rows)
            assert ready.take()
            found.append((made.loss, made.norm, made.tokens))
        assert ready.step == ready.steps == len(wanted) and found == wanted
        place = ready.save(tmp_path / "weights")
    trained = next(run.path.glob("*/*.safetensors"))
    assert sha256(place / trained.name) == sha256(trained)
    assert (place / "tokenizer.json").is_file()


def test_what_a_loop_of_ones_own_has_to_hand(settings: dict[str, Any]) -> None:
    with luthier.prepare(**settings) as ready:
        assert len(ready.rows) == 32 and len(ready.held_out) == 8 and ready.steps == 4
        row = ready.rows[0]
        assert len(row.ids) == len(row.labels) and "Say number" in ready.tokenizer.decode(row.ids)
        assert repr(ready).endswith("step 0 of 4)") and "lora" in repr(ready) and ready.lr == 1e-2
        trained = [p for p in ready.model.parameters() if p.requires_grad]
        assert {id(p) for group in ready.optimizer.param_groups for p in group["params"]} == set(map(id, trained))
        before = [p.detach().clone() for p in trained]
        made = ready.gradient(ready.rows[:4])
        assert math.isfinite(made.loss) and made.norm > 0 and made.targets == sum(r.learned for r in ready.rows[:4])
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
        assert ready.take() and ready.step == 1
        assert any(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))
        assert all(p.grad is None for p in trained)
        with pytest.raises(luthier.InputError, match="there is no gradient"):
            ready.take()
        with pytest.raises(luthier.InputError, match="there are no rows"):
            ready.gradient([])
        assert len(list(ready.batches())) == 3


def test_a_gradient_that_is_not_finite_is_left_out(settings: dict[str, Any]) -> None:
    with luthier.prepare(**settings) as ready:
        trained = next(p for p in ready.model.parameters() if p.requires_grad)
        kept = trained.detach().clone()
        with torch.no_grad():
            trained.fill_(math.nan)
        assert not ready.gradient(ready.rows[:2]).finite
        assert not ready.take() and ready.step == 1
        with torch.no_grad():
            trained.copy_(kept)
        assert ready.gradient(ready.rows[:2]).finite and ready.take()


def test_weights_are_saved_for_peft_and_nothing_else_is_replaced(settings: dict[str, Any], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with luthier.prepare(**settings) as ready:
        ready.gradient(ready.rows[:2])
        ready.take()
        place = ready.save(tmp_path / "weights")
        assert ready.save(place) == place, "its own weights are replaced"
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("years of work")
        for other in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
            with pytest.raises(luthier.InputError, match="is there already"):
                ready.save(other)
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(settings["model"]), place)
    own = load_file(place / "adapter_model.safetensors")
    held = {key.replace(".default", ""): value for key, value in loaded.state_dict().items() if "lora_" in key}
    assert set(own) == set(held) and all(torch.equal(own[key], held[key]) for key in own)


def test_the_kernels_are_taken_out_at_the_end(settings: dict[str, Any]) -> None:
    ready = luthier.prepare(**settings)
    inside = [name for name, module in ready.model.named_modules() if "forward" in vars(module)]
    ready.close()
    left = [name for name, module in ready.model.named_modules() if "forward" in vars(module)]
    assert len(left) < len(inside)
    ready.close()


def test_prepare_leaves_nothing_behind(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    luthier.prepare(**settings).close()
    assert not list(tmp_path.iterdir())


def test_a_stream_gives_its_rows_in_order(model_folder: Callable[..., Path], settings: dict[str, Any]) -> None:
    own = {**settings, "data": {**settings["data"], "streaming": True, "validation": "none"}}
    with luthier.prepare(**own) as ready:
        batches = list(ready.batches())
    assert [len(rows) for rows in batches] == [4] * 4 and len(
        {tuple(row.ids) for rows in batches for row in rows}
    ) == 16
