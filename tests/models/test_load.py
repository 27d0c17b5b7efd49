"""What a model folder lacks is an error, not a random start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from luthier.core.errors import ModelError
from luthier.models.load import load_model, load_tokenizer
from luthier.models.settings import ModelConfig


def test_weights_that_the_files_lack_are_named(
    model_folder: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "half"
    shutil.copytree(model_folder("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = ModelConfig(path=str(folder))
    tokenizer = load_tokenizer(config, str(folder))
    for labels in (None, ("a", "b")):
        with pytest.raises(ModelError, match=r"1 weights of .*half are not in its files, among them .*up_proj"):
            load_model(config, str(folder), labels=labels, tokenizer=tokenizer)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2", "t5"])
def test_a_new_head_may_start_random(model_folder: Callable[..., Path], kind: str) -> None:
    folder = str(model_folder(kind))
    config = ModelConfig(path=folder)
    load_model(config, folder, labels=("a", "b"), tokenizer=load_tokenizer(config, folder))
