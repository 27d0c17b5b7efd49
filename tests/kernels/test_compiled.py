"""train.compile: torch's own code for the layers learns what the layers learn as they are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.core.errors import InputError
from luthier.kernels.apply import check_compile, patched, repeated_blocks
from luthier.kernels.attention import NAME
from luthier.pipeline.prepare import on_this_machine
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.tasks.base import TASKS
from tests.conftest import alpaca_rows, write_jsonl
from tests.methods.zoo import DECODERS, attached, base, shake
from tests.training.test_packing import some_rows


@pytest.fixture(scope="module")
def compiler() -> None:
    try:
        check_compile("cpu")
    except InputError as error:
        pytest.skip(f"no compiler: {error}")


@pytest.mark.parametrize("kind", DECODERS)
def test_blocks_are_the_layers(kind: str) -> None:
    model = base(kind)
    found = repeated_blocks(model)
    assert len(found) == model.config.num_hidden_layers and len({type(block) for block in found}) == 1
    assert len(repeated_blocks(attached("lora", kind)[1])) == len(found), "a method's own modules are no layers"
    assert repeated_blocks(torch.nn.Linear(2, 2)) == []


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("packed", [False, True])
def test_loss_and_gradients_are_the_models_own(packed: bool) -> None:
    _, model = attached("lora", "qwen2")
    shake(model)
    model.train()
    if not packed:  # as above a trained layer: the first one needs a gradient too, and one compilation does for all
        model.enable_input_require_grads()
    task, found = TASKS.parse("chat"), []
    for compile in (False, True):
        made = []
        with patched(model, packed, compile):
            layers = repeated_blocks(model)
            assert all((layer._compiled_call_impl is not None) is compile for layer in layers)
            for size in (6, 9):  # of other lengths
                rows = some_rows(size)
                model.zero_grad(set_to_none=True)
                loss = task.losses(model, task.pack(rows) if packed else task.collate(rows, 1))[0].sum()
                loss.backward()
                made += [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
        found.append(made)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert all(layer._compiled_call_impl is None for layer in layers)
    assert model.get_base_model().config._attn_implementation != NAME


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_run_with_it_ends_where_one_without_ends(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Of the shapes of the test above, whose code is there already."""
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(24))
    ends = []
    for compile in (False, True):
        config = RunConfig.model_validate(
            {
                "run": str(tmp_path / f"compile-{compile}"),
                "model": {"path": str(model_folder("qwen2"))},
                "data": {"path": str(data)},
                "method": {"name": "lora", "rank": 4},
                "train": {"steps": 3, "batch_size": 4, "compile": compile},
                "evaluate": {"before": False, "generate": 0},
            }
        )
        train(config)
        lines = [json.loads(line) for line in (Path(str(config.run)) / "metrics.jsonl").read_text().splitlines()]
        ends.append([line.get("loss", line.get("validation_loss")) for line in lines])
    assert ends[0] == pytest.approx(ends[1], rel=1e-4) and len(ends[0]) > 3


def test_without_a_compiler_it_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor

    torch._dynamo.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    made = RunConfig.model_validate(
        {"model": {"path": "builtin"}, "data": {"path": "nowhere.jsonl"}, "train": {"compile": True}}
    )
    with pytest.raises(InputError, match=r"train.compile: torch.compile does not work here.*"):
        on_this_machine(made)
    torch._dynamo.reset()
