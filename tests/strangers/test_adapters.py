"""Adapters whose weights do not fit their base are refused by everything that loads one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.config import parse_export
from luthier.errors import InputError
from luthier.exporting import export
from luthier.folder import RunFolder
from luthier.run import evaluate
from luthier.serving.engine import Engine
from luthier.training.checkpoint import staged
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


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_does_not_fit_is_refused_as_a_folder(fault: str, finished: Path, tmp_path: Path) -> None:
    adapter = copied(finished / "adapter", tmp_path / "adapter")
    rewrite(adapter, FAULTS[fault])
    with pytest.raises(InputError, match="is not an adapter for this base") as caught:
        Engine.load(adapter)
    assert "adapter" in caught.value.message and "base that it was trained on" in caught.value.mend


@pytest.mark.parametrize("fault", ["foreign", "half"])
def test_and_within_a_run_by_every_command(fault: str, finished: Path, tmp_path: Path) -> None:
    """As it would be with a manifest that is right."""
    run = copied(finished, tmp_path / "run")
    with staged(run / "adapter", RunFolder(run).ledger.run) as folder:
        shutil.copytree(finished / "adapter", folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        rewrite(folder, FAULTS[fault])
    for command in (evaluate, Engine.load, lambda run: export(run, parse_export("merged", []), prompts=1)):
        with pytest.raises(InputError, match="is not an adapter for this base"):
            command(run)
    with pytest.raises(InputError, match="is not an adapter for this base"):
        export(run, parse_export("adapter", []), prompts=1)


def test_a_damaged_file_is_called_that(finished: Path, tmp_path: Path) -> None:
    adapter = copied(finished / "adapter", tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is damaged"):
        Engine.load(adapter)


def test_an_adapter_of_a_classifier_does_not_talk(finished: Path, tmp_path: Path) -> None:
    adapter = copied(finished / "adapter", tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "task_type": "SEQ_CLS"}))
    with pytest.raises(InputError, match=r"adapter of a classifier \(task_type SEQ_CLS\), which does not talk"):
        Engine.load(adapter)


def test_the_settings_of_an_adapter_have_the_same_bytes_in_every_process(model_folder: Callable[..., Path]) -> None:
    code = (
        "import sys, tempfile, pathlib; from luthier.config import RunConfig;"
        "from transformers import AutoModelForCausalLM as A; m = A.from_pretrained(sys.argv[1]);"
        "c = RunConfig.load(None, ['method=lora']).method; t = c.attach(m, steps=9);"
        "d = pathlib.Path(tempfile.mkdtemp()); c.save(t, d); print((d / 'adapter_config.json').read_text())"
    )
    made = {
        subprocess.run(
            [sys.executable, "-c", code, str(model_folder())], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(made) == 1 and "target_modules" in made.pop()
