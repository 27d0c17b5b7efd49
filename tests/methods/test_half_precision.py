"""A base in bfloat16: what trains is float32, and it is measured, saved and used without autocast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.core.errors import InputError
from luthier.pipeline.evaluate import evaluate
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from tests.conftest import review_rows, write_jsonl
from tests.methods.zoo import NOT_THE_BASE, REFUSALS, attached, base, ids, method, peft_names, shake

pytestmark = pytest.mark.matrix

KINDS = ["llama", "gpt2", "bert"]
CELLS = [
    pytest.param(name, kind, id=f"{name}-{kind}")
    for name in peft_names()
    for kind in KINDS
    if (name, kind) not in REFUSALS and name != "lora (bias)"
]
ROUNDED = {"pissa": 2e-2}
"""PiSSA takes its start out of the base's weights, which are then rounded again."""


RATES = {"lora": 1e-2, "adalora": 1e-2, "houlsby": 1e-2, "unipelt": 1e-2, "full": 1e-3}


def half(kind: str) -> Any:
    return base(kind, classify=True).to(torch.bfloat16)


def logits(model: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=x, attention_mask=torch.ones_like(x)).logits
    return found.float().clone()


@pytest.mark.parametrize(("name", "kind"), CELLS)
def test_a_head_on_a_bfloat16_base_is_float32_and_answers_without_autocast(
    name: str, kind: str, tmp_path: Path
) -> None:
    """Step zero is the base but for rounding, and saved and loaded it is the same."""
    x = ids(kind)
    tuner, model = attached(name, kind, model=half(kind), classify=True)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert not [n for n in trained if "ranknum" in n], "AdaLoRA counts its ranks, it does not train the count"
    plain = logits(half(kind), x)
    if tuner.name not in NOT_THE_BASE:
        assert (logits(model, x) - plain).abs().max() < 2e-2
    shake(model)
    told = logits(model, x)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=x).logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained.values())
    model.eval()

    tuner.save(model, tmp_path)
    assert (logits(tuner.load(half(kind), tmp_path).eval(), x) - told).abs().max() <= ROUNDED.get(name, 1e-6)
    switch = tuner.disabled(model)
    assert switch is not None
    with switch:
        assert (logits(model, x) - plain).abs().max() <= ROUNDED.get(name, 0.0)
    if tuner.mergeable:
        merged = tuner.merge(model)
        assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}, "a plain model, head and all"
        assert (logits(merged, x) - told).norm() < 0.1 * told.norm()


def test_biases_of_a_bfloat16_base_are_not_trained_in_place() -> None:
    with pytest.raises(InputError, match="bfloat16 here, where small updates are lost") as error:
        attached("lora (bias)", "bert", model=half("bert"))
    assert error.value.fix == "method.bias=none, or model.dtype=float32"
    attached("lora (bias)", "llama", model=base("llama").to(torch.bfloat16))  # has no bias


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lora", "llama"), ("adalora", "bert"), ("houlsby", "gpt2"), ("unipelt", "bert"), ("full", "bert")],
)
def test_a_run_that_classifies_in_bfloat16(
    name: str, kind: str, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    file, run = write_jsonl(tmp_path / "r.jsonl", review_rows(60)), tmp_path / "run"
    fields = [
        f"method.{key}={value}"
        for key, value in method(name).model_dump().items()
        if key in ("rank", "target_rank", "size", "length")
    ]
    result = train(
        RunConfig.load(
            None,
            [
                f"model={model_folder(kind)}",
                f"data={file}",
                f"run={run}",
                "task=classify",
                f"method={name}",
                *fields,
                "model.dtype=bfloat16",
                "train.precision=bf16",
                "train.steps=40",
                f"train.lr={RATES[name]}",
                f"train.head_lr={RATES[name]}",
            ],
        )
    )
    told = result["tuned"]["loss"]["value"]
    assert told < result["base"]["loss"]["value"]
    assert evaluate(run)["tuned"]["loss"]["value"] == pytest.approx(told, abs=5e-3 if name == "full" else 1e-4)
