"""A GGUF file as the base: unpacked once, and then the model that it was written from."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from luthier.core.errors import ModelError
from luthier.exports.llama_cpp.file import write_model
from luthier.exports.llama_cpp.vocabulary import vocabulary
from luthier.models.gguf import gguf_file, unpacked
from luthier.models.load import load_model, load_tokenizer, locate
from luthier.models.settings import ModelConfig
from luthier.rendering.chat_template import CHATML
from luthier.serving.engine.sources import source_of


@pytest.fixture
def packed(model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A GGUF file of a small random model, and its folder; the cache is empty."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))

    def make(kind: str = "llama", types: Any = "f32") -> Path:
        source = model_folder(kind, CHATML)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = transformers.AutoModelForCausalLM.from_pretrained(source)
        file = tmp_path / "files" / f"{kind}.gguf"
        file.parent.mkdir(exist_ok=True)
        write_model(file, model, vocabulary(tokenizer, 400, [1], dialogues=True), types, kind)
        return file

    return make


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_unpacked_base_is_the_model_that_the_file_was_written_from(
    kind: str, packed: Callable[..., Path], model_folder: Callable[..., Path]
) -> None:
    file, source = packed(kind), model_folder(kind, CHATML)
    config = ModelConfig(path=str(file))
    place = locate(config)
    tokenizer, original = load_tokenizer(config, place), transformers.AutoTokenizer.from_pretrained(source)
    text = [{"role": "user", "content": "Hello, Grüße, 你好  42!"}]
    assert tokenizer.apply_chat_template(text, tokenize=False) == original.apply_chat_template(text, tokenize=False)
    assert tokenizer(text[0]["content"])["input_ids"] == original(text[0]["content"])["input_ids"]
    x = torch.arange(3, 25).view(2, 11)
    with torch.no_grad():
        made = load_model(config, place, labels=None, tokenizer=tokenizer).eval()(input_ids=x).logits
        told = transformers.AutoModelForCausalLM.from_pretrained(source).eval()(input_ids=x).logits
    torch.testing.assert_close(made, told, atol=1e-5, rtol=0)


def test_a_file_is_unpacked_once_and_again_where_it_changed(packed: Callable[..., Path]) -> None:
    file = packed()
    first = unpacked(file)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert unpacked(file) == first and (first / "model.safetensors").stat().st_mtime_ns == stamp
    packed(types="q8_0")
    assert unpacked(file) != first
    assert not [each for each in first.parent.iterdir() if each.name.startswith(".staging")]


def test_a_folder_with_one_file_is_that_file_and_with_two_is_an_error(packed: Callable[..., Path]) -> None:
    file = packed()
    assert gguf_file(file.parent) == file
    assert source_of(str(file)).name == "llama"
    shutil.copy(file, file.with_name("other.gguf"))
    with pytest.raises(ModelError, match=r"holds 2 GGUF files: llama.gguf, other.gguf"):
        locate(ModelConfig(path=str(file.parent)))


def test_a_damaged_file_is_one_clear_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelError, match=r"bad.gguf cannot be unpacked"):
        locate(ModelConfig(path=str(file)))
    assert list((tmp_path / "cache").iterdir()) == []
