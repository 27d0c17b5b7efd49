"""The learning rate of a classifier's new head follows the size of the features that it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.models.targets import in_head
from luthier.pipeline.train import before_first_step
from luthier.recipe.config import RunConfig
from luthier.training.head_rate import MOVES
from tests.conftest import review_rows, write_jsonl


def recipe(model: Path, data: Path, run: Path, *more: str) -> RunConfig:
    return RunConfig.load(None, [f"data={data}", f"model={model}", "task=classify", f"run={run}", *more])


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_one_step_moves_a_logit_by_no_more_than_planned(
    model_folder: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    reviews = write_jsonl(tmp_path / "reviews.jsonl", review_rows(16))
    still = ["method=lora", "data.validation=none"]
    loaded, trainer = before_first_step(recipe(model_folder(kind), reviews, tmp_path / "run", *still))
    model, rate = loaded.model.eval(), trainer.config.head_lr
    read: list[float] = []
    assert rate is not None
    for name, layer in model.named_modules():
        if in_head(name) and isinstance(layer, torch.nn.Linear) and "original" not in name:
            layer.register_forward_hook(lambda _, inputs, __: read.append(float(inputs[0].abs().sum(-1).mean())))
    for row in (loaded.data.rows[i] for i in range(8)):
        batch = loaded.data.task.collate([row], trainer.pad_id)
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert 0.5 * MOVES < rate * max(read) < 2 * MOVES
