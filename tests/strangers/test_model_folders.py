"""Model folders with lies in them: refused by name, before anything runs, hangs or is fetched."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from luthier.core.errors import ModelError
from luthier.models.load import load_model, load_tokenizer, locate, row_limit, skeleton
from luthier.models.settings import ModelConfig
from luthier.runs.provenance import base_hashes


@pytest.fixture
def folder(model_folder: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder(), tmp_path / "model"))


def opened(folder: Path, **options: Any) -> Any:
    config = ModelConfig(path=str(folder), **options)
    source = locate(config)
    skeleton(config, source, labels=None)
    return load_model(config, source, labels=None, tokenizer=load_tokenizer(config, source))


def sharded(folder: Path, second: str) -> dict[str, torch.Tensor]:
    """Split the weights in two files, the second under this name; returns what is to be in that."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    half = {name: tensors[name] for name in names[: len(names) // 2]}
    save_file(half, folder / "a.safetensors", metadata={"format": "pt"})
    places = {name: "a.safetensors" if name in half else second for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return {name: tensors[name] for name in names if name not in half}


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["b.bin", "../outside/b.bin", "../outside/b.safetensors", "/tmp/b.safetensors"])
def test_an_index_names_safetensors_in_its_folder_or_nothing_is_opened(name: str, folder: Path) -> None:
    (folder.parent / "outside").mkdir()
    rest, marker = sharded(folder, name), folder.parent / "it ran"
    if name.endswith(".bin"):
        (folder / name).write_bytes(pickle.dumps(Trap(marker)))
    elif name.startswith(".."):
        save_file(rest, folder / name, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"only \.safetensors files in its folder are opened"):
        opened(folder)
    assert not marker.exists()


def test_a_link_out_of_the_folder_is_refused_and_one_within_a_hub_cache_is_not(folder: Path, tmp_path: Path) -> None:
    outside = shutil.move(folder / "model.safetensors", tmp_path / "weights.safetensors")
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(ModelError, match="is a link that leads out"):
        opened(folder)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    shutil.copytree(folder, snapshot, symlinks=True)
    blob = tmp_path / "models--a--b" / "blobs" / "x"
    blob.parent.mkdir()
    shutil.copy(outside, blob)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(blob)
    opened(snapshot)


def test_shards_in_a_folder_within_are_read_and_hashed(folder: Path) -> None:
    rest = sharded(folder, "parts/b.safetensors")
    (folder / "parts").mkdir()
    save_file(rest, folder / "parts" / "b.safetensors", metadata={"format": "pt"})
    opened(folder)
    before = base_hashes(folder)
    assert {"a.safetensors", "parts/b.safetensors"} <= set(before)
    name = next(name for name, tensor in rest.items() if tensor.ndim == 2)
    rest[name][0, 0] += 1
    save_file(rest, folder / "parts" / "b.safetensors", metadata={"format": "pt"})
    assert base_hashes(folder)["parts/b.safetensors"] != before["parts/b.safetensors"]


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


LIES: dict[str, dict[str, Any]] = {
    "num_hidden_layers is 1000000": {"num_hidden_layers": 10**6},
    "num_hidden_layers is 500, and the weights have 2 layers": {"num_hidden_layers": 500},
    "hidden_size is -32": {"hidden_size": -32},
    "vocab_size is 0": {"vocab_size": 0},
    "intermediate_size is 100000000000000000": {"intermediate_size": 10**17},
    "hidden_act is 'sillu', which transformers does not know": {"hidden_act": "sillu"},
    "attn_implementation is 'evil/repo', which would fetch code": {"attn_implementation": "evil/repo"},
    "_attn_implementation_internal is 'evil/repo'": {"_attn_implementation_internal": "evil/repo"},
    "text_config._attn_implementation is 'a/b:f'": {"text_config": {"_attn_implementation": "a/b:f"}},
    "names 'x.bin' as weights": {"transformers_weights": "x.bin"},
    "attn_implementation is 5, which is none of eager": {"attn_implementation": 5},
    "experts_implementation is 'sonicmoe', which is none of": {"experts_implementation": "sonicmoe"},
    "attn_implementation.implementation is 'a/b'": {"attn_implementation": {"text_config": "a/b"}},
    "head_dim is 1000000, and no weight has": {"head_dim": 10**6},
    "num_labels is 1000000": {"num_labels": 10**6},
    "text_config should be an object": {"text_config": 5},
    "attention_dropout is 7": {"attention_dropout": 7},
    "sliding_window is 'x'": {"sliding_window": "x"},
    "pad_token_id is 400, and the model has 400 tokens": {"pad_token_id": 400},
    "cannot use the config.json": {"dtype": 5},
    "num_key_value_heads is 3, which does not divide": {"num_key_value_heads": 3},
    "rms_norm_eps': TypeError": {"rms_norm_eps": "x"},
}


@pytest.mark.parametrize("said", LIES)
def test_a_configuration_that_lies_is_refused(said: str, folder: Path) -> None:
    change(folder, **LIES[said])
    for options in ({}, {"init": "random"}):
        if ("and the weights have" in said or "and no weight has" in said) and options:
            continue
        with pytest.raises(ModelError) as caught:
            opened(folder, **options)
        assert said in caught.value.message and "config.json" in caught.value.message, caught.value.message


def test_layers_that_share_their_weights_are_no_lie(tmp_path: Path) -> None:
    import transformers as t

    from tests.conftest import build_tokenizer

    config = t.AlbertConfig(
        vocab_size=400, embedding_size=16, hidden_size=32, num_attention_heads=4, intermediate_size=64
    )
    assert config.num_hidden_layers == 12
    t.AlbertForSequenceClassification(config).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    locate(ModelConfig(path=str(tmp_path)))


def test_a_configuration_that_is_no_object_is_refused(folder: Path) -> None:
    for text in ("[]", "{", "null", "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(Exception, match=r"config\.json") as caught:
            opened(folder)
        assert getattr(caught.value, "exit_code", None) == 2


def test_a_damaged_file_is_not_said_to_have_a_wrong_name(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for cut in (whole[:-9], whole[:50], b"", b"\xff" * 64):
        file.write_bytes(cut)
        with pytest.raises(ModelError) as caught:
            opened(folder)
        assert "check the name" not in str(caught.value) and "download the model again" in str(caught.value)


def test_too_little_memory_is_called_that(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(ModelError, match="the memory is too small for the weights"):
        opened(folder)


def test_a_run_checks_the_whole_model_that_it_keeps(folder: Path) -> None:
    """Its weights are loaded from its own folder, which `locate` never sees."""
    base = ModelConfig(path="builtin")
    (folder / "b.bin").write_bytes(pickle.dumps(Trap(folder / "it ran")))
    sharded(folder, "b.bin")
    with pytest.raises(ModelError, match=r"only \.safetensors files"):
        load_model(base, str(folder), labels=None, tokenizer=load_tokenizer(base, str(folder)))
    assert not (folder / "it ran").exists()


def test_a_base_is_loaded_without_an_adapter_that_lies_beside_it(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "evil/base"}')
    with pytest.raises(ModelError, match="holds an adapter beside the model"):
        opened(folder)


def test_a_run_within_the_folder_of_its_base_does_not_change_the_base(folder: Path) -> None:
    before = base_hashes(folder)
    (folder / "run" / "adapter").mkdir(parents=True)
    save_file({"a": torch.ones(1)}, folder / "run" / "adapter" / "adapter_model.safetensors")
    assert base_hashes(folder) == before


def test_tokens_beyond_the_vocabulary_are_named_before_a_run_meets_them(folder: Path) -> None:
    generation = folder / "generation_config.json"
    was = generation.read_text()
    generation.write_text(json.dumps({**json.loads(was), "pad_token_id": 10**6}))
    with pytest.raises(ModelError, match=r"generation_config\.json: pad_token_id is 1000000"):
        opened(folder)
    generation.write_text(was)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["<|late|>"] = 400
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"has token 400 \('<\|late\|>'\), and the model has 400 tokens"):
        opened(folder)


def test_an_end_beyond_the_vocabulary_is_never_chosen_and_so_is_taken(folder: Path) -> None:
    """Starcoder2's own default is one."""
    change(folder, eos_token_id=[0, 10**6])
    assert opened(folder)


def test_an_added_token_beyond_matters_where_a_template_uses_it(folder: Path) -> None:
    """Gemma 3 has one token more than its 1B model has embeddings: it stands for an image."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<|{i}|>" for i in range(401 - len(tokenizer))], special_tokens=True)
    tokenizer.save_pretrained(folder)
    opened(folder)
    last = tokenizer.convert_ids_to_tokens(400)
    (folder / "chat_template.jinja").write_text(f"{{{{ messages[0].content }}}}{last}")
    with pytest.raises(ModelError, match=r"has token 400 .* and the model has 400 tokens"):
        opened(folder)


def test_layers_that_config_json_leaves_out_are_not_dropped_in_silence(folder: Path) -> None:
    change(folder, num_hidden_layers=1)
    with pytest.raises(
        ModelError, match=r"weights of .* are of layers that its config\.json leaves out.*model\.layers\.1\."
    ):
        opened(folder)


def test_what_transformers_wrote_about_its_attention_is_taken(folder: Path) -> None:
    """From 4.46 to 4.52 it wrote the first of these into most models."""
    change(folder, _attn_implementation_autoset=True, attn_implementation="sdpa", _attn_implementation=None)
    opened(folder)


def test_nan_in_a_shard_of_a_folder_within_is_named(folder: Path) -> None:
    rest = sharded(folder, "parts/b.safetensors")
    (folder / "parts").mkdir()
    name = sorted(rest)[0]
    rest[name].view(-1)[0] = float("nan")
    save_file(rest, folder / "parts" / "b.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} of .*parts/b\.safetensors holds NaN"):
        opened(folder)


@pytest.mark.parametrize("single", [True, False])
def test_an_index_of_anything_is_hashed_without_a_traceback(single: bool, folder: Path) -> None:
    (folder.parent / "outside.safetensors").write_bytes(b"x" * 16)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": ["x"], "b": 1, "c": "../outside.safetensors"}})
    )
    if not single:
        (folder / "model.safetensors").unlink()
    assert ("model.safetensors" in base_hashes(folder)) == single
    assert "../outside.safetensors" not in base_hashes(folder)


def test_advice_for_a_tokenizer_of_no_length_is_about_the_tokenizer(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": -5}))
    config = ModelConfig(path=str(folder))
    with pytest.raises(ModelError, match=r"takes -5 tokens at most .*\n.*tokenizer_config\.json"):
        row_limit(config, str(folder), load_tokenizer(config, str(folder)), None, 0)


def test_a_package_that_a_model_needs_is_named_and_no_download_advised(folder: Path) -> None:
    change(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    if find_spec("optimum"):
        pytest.skip("the package that is to be missing is here")
    with pytest.raises(ModelError, match="optimum") as caught:
        opened(folder)
    assert caught.value.fix == "install that package, or another base"


def test_no_key_can_ask_for_modules_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.models.files.MOST_MODULES", 10)
    with pytest.raises(ModelError, match="more than 10 modules"):
        opened(folder)


def test_a_header_that_is_no_object_is_damage(folder: Path) -> None:
    for header in (b"[1, 2]", b"5", b'{"a": 1}', b'{"a": {"shape": 3}}', b"[" * 100_000):
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
            opened(folder)


@pytest.mark.parametrize("fault", ["index", "adapter"])
def test_what_a_hub_id_brings_is_held_to_the_same(
    fault: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, repository = tmp_path / "it ran", tmp_path / "hub" / "models--a--b"
    if fault == "index":
        sharded(folder, "b.bin")
        (folder / "b.bin").write_bytes(pickle.dumps(Trap(marker)))
    else:
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    commit = "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    config = ModelConfig(path="a/b")
    tokenizer = load_tokenizer(config, "a/b")
    with pytest.raises(ModelError, match=r"only \.safetensors|holds an adapter beside"):
        load_model(config, "a/b", labels=None, tokenizer=tokenizer)
    assert not marker.exists()
