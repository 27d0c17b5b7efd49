"""Adapters whose weights do not fit their base are refused by everything that loads one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from luthier.core.errors import InputError
from luthier.core.files import staged
from luthier.methods.layers.loading import load_adapter
from luthier.pipeline.evaluate import evaluate
from luthier.pipeline.export import export
from luthier.recipe.config import RunConfig
from luthier.recipe.parse import parse_export
from luthier.runs.folder import RunFolder
from luthier.serving.backends import open_backends
from luthier.serving.engine.engine import Engine
from luthier.serving.vllm.launch import plan_of
from tests.processes import python
from tests.strangers.conftest import copied

Tensors = dict[str, torch.Tensor]

FAULTS: dict[str, Callable[[Tensors], Tensors]] = {
    "foreign": lambda tensors: {name.replace("layers", "blocks"): value for name, value in tensors.items()},
    "half": lambda tensors: {name: value for name, value in tensors.items() if "lora_B" not in name},
    "more": lambda tensors: {**tensors, "base_model.model.model.layers.7.x.lora_A.weight": torch.ones(2, 2)},
    "empty": lambda tensors: {},
    "shape": lambda tensors: {name: torch.zeros(3, 5) for name in tensors},
}


def rewrite(adapter: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def change(adapter: Path, **values: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_does_not_fit_is_refused_as_a_folder(fault: str, finished: Path, tmp_path: Path) -> None:
    adapter = copied(finished / "adapter", tmp_path / "adapter")
    rewrite(adapter, FAULTS[fault])
    with pytest.raises(InputError, match="is not an adapter for this base") as caught:
        Engine.open([str(adapter)])
    assert "adapter" in caught.value.message and "base that it was trained on" in caught.value.fix


@pytest.mark.parametrize("fault", ["foreign", "half"])
def test_and_within_a_run_by_every_command(fault: str, finished: Path, tmp_path: Path) -> None:
    """As it would be with a manifest that is right."""
    run = copied(finished, tmp_path / "run")
    with staged(run / "adapter", RunFolder(run).ledger.run) as folder:
        shutil.copytree(finished / "adapter", folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        rewrite(folder, FAULTS[fault])
    for command in (
        evaluate,
        lambda run: Engine.open([str(run)]),
        lambda run: export(run, parse_export("merged", []), prompts=1),
    ):
        with pytest.raises(InputError, match="is not an adapter for this base"):
            command(run)
    with pytest.raises(InputError, match="is not an adapter for this base"):
        export(run, parse_export("adapter", []), prompts=1)


def test_a_damaged_file_is_called_that(finished: Path, tmp_path: Path) -> None:
    adapter = copied(finished / "adapter", tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is damaged"):
        Engine.open([str(adapter)])


def test_a_rank_that_no_weight_has_takes_no_memory(finished: Path, tmp_path: Path) -> None:
    adapter = copied(finished / "adapter", tmp_path / "adapter")
    change(adapter, r=10**9)
    with pytest.raises(InputError, match="r is 1000000000, and no weight of"):
        Engine.open([str(adapter)])


@pytest.mark.parametrize(
    ("said", "settings"),
    {
        "rank_pattern.q_proj is 1000000000, and no weight": {"rank_pattern": {"q_proj": 10**9}},
        "lora_alpha is nan, so every answer": {"lora_alpha": float("nan")},
        "alpha_pattern.q_proj is 1e+308, so every answer": {"alpha_pattern": {"q_proj": 1e308}},
        "layer_replication has 100000 parts": {"layer_replication": [[0, 2]] * 10**5},
        "an X-LoRA adapter opens other adapters": {"peft_type": "XLORA", "adapters": {"0": "evil/repo"}},
        "index 1000000 is out of bounds": {"trainable_token_indices": [10**6]},
    }.items(),
)
def test_settings_that_cannot_be_are_refused(
    said: str, settings: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    adapter = copied(finished / "adapter", tmp_path / "adapter")
    change(adapter, **settings)
    with pytest.raises(InputError) as caught:
        Engine.open([str(adapter)])
    assert said in caught.value.message


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": r"(([a-z_.0-9])+)+!"},
        {"exclude_modules": "(x+x+)+y|(.+)+!"},
        {"rank_pattern": {"((.)+)+!": 2}},
    ],
)
def test_a_regular_expression_without_an_end_is_stopped(
    settings: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.methods.layers.loading.MATCHING", 1.0)
    adapter = copied(finished / "adapter", tmp_path / "adapter")
    change(adapter, **settings)
    with pytest.raises(InputError, match="regular expressions take more than"):
        Engine.open([str(adapter)])


def test_a_regular_expression_of_a_real_adapter_is_taken(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder())
    layers = r"(?:.*?(?:language|layers).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.x)"
    get_peft_model(model, LoraConfig(target_modules=layers, rank_pattern={r"layers\.(\d)+\..*": 2})).save_pretrained(
        tmp_path
    )
    assert load_adapter(AutoModelForCausalLM.from_pretrained(model_folder()), tmp_path)


def test_vllm_gets_no_pickle_and_no_adapter_of_another_base(finished: Path, tmp_path: Path) -> None:
    adapter = copied(finished / "adapter", tmp_path / "adapter")
    assert plan_of([str(adapter)]).adapters
    rewrite(adapter, FAULTS["foreign"])
    with pytest.raises(InputError, match="is not an adapter for this base"):
        plan_of([str(adapter)])
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"a pickle that holds more than weights, or is damaged"):
        plan_of([str(adapter)])


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_checkpoint_with_a_weight_of_another_shape_is_refused(
    name: str, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """torch's copy_ would spread a smaller weight over the whole of the model's."""
    method: Any = RunConfig.load(None, [f"method={name}"]).method
    model = method.attach(AutoModelForCausalLM.from_pretrained(model_folder()), steps=9)
    method.save(model, tmp_path, training=True)
    file = next(tmp_path.glob("*model.safetensors"))
    tensors = load_file(file)
    key = next(key for key, tensor in tensors.items() if tensor.ndim == 2)
    save_file({**tensors, key: tensors[key][:1, :1].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="do not match this model, among them"):
        method.restore(model, tmp_path)


def test_a_trained_head_of_a_classifier_is_refused_whatever_its_settings_say(finished: Path, tmp_path: Path) -> None:
    adapter = copied(finished / "adapter", tmp_path / "adapter")
    change(adapter, modules_to_save=["score"])
    rewrite(adapter, lambda tensors: {**tensors, "base_model.model.score.weight": torch.ones(2, 32)})
    with pytest.raises(InputError, match=r"is not an adapter for this base: .*score\.weight"):
        Engine.open([str(adapter)])


def test_an_adapter_of_a_classifier_is_no_server(finished: Path, tmp_path: Path) -> None:
    adapter = copied(finished / "adapter", tmp_path / "adapter")
    change(adapter, task_type="SEQ_CLS")
    with pytest.raises(InputError, match="is a classifier, which generates no text") as caught:
        Engine.open([str(adapter)])
    assert f"luthier chat {adapter}" in caught.value.fix
    with pytest.raises(InputError, match=r"score\.weight"):
        open_backends(str(adapter), untuned=False, beside=None, model=None, notify=print, allow_code=False)
    change(adapter, task_type="FEATURE_EXTRACTION")
    with pytest.raises(InputError, match=r"neither a language model nor a classifier \(task_type FEATURE_EXTRACTION\)"):
        Engine.open([str(adapter)])


def test_the_settings_of_an_adapter_have_the_same_bytes_in_every_process(model_folder: Callable[..., Path]) -> None:
    code = (
        "import sys, tempfile, pathlib; from luthier.recipe.config import RunConfig;"
        "from transformers import AutoModelForCausalLM as A; m = A.from_pretrained(sys.argv[1]);"
        "c = RunConfig.load(None, ['method=lora']).method; t = c.attach(m, steps=9);"
        "d = pathlib.Path(tempfile.mkdtemp()); c.save(t, d); print((d / 'adapter_config.json').read_text())"
    )
    here = python(code, model_folder())
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"  # of another order of sets than here
    there = subprocess.run(
        [sys.executable, "-c", code, str(model_folder())],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    assert here.stdout == there.stdout and "target_modules" in here.stdout, here.stderr
