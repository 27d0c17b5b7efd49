"""A quantized export is what it says: smaller, opened by transformers alone, and as near to the run as stated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import CannotMerge, ConfigError, InputError, MissingExtra, Unproved
from luthier.exports import quantized
from luthier.pipeline.export import export
from luthier.recipe.parse import parse_export
from tests.conftest import build_tokenizer, luthier

SCHEMES = list(quantized.SCHEMES)


def need(scheme: str) -> None:
    library = quantized.SCHEMES[scheme].library
    pytest.importorskip(library, reason=f"{library} is not installed: it is an extra")


def layer_bytes(folder: Path) -> int:
    """On disk, but for embeddings and head: they stay as they are, and are most of a model as small as these."""
    from safetensors.torch import load_file

    stored = load_file(folder / "model.safetensors")
    return sum(each.nbytes for name, each in stored.items() if "layers." in name)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_near_to_the_run_and_smaller(run: Callable[..., Path], scheme: str) -> None:
    need(scheme)
    folder = run()
    report = export(folder, parse_export("quantized", [f"scheme={scheme}"]))
    told, allowed = report["parity"][0], quantized.SCHEMES[scheme]
    assert told["held"] and 0 < told["largest"] <= allowed.bound * told["spread"]
    assert told["mean_bound"] == allowed.mean and told["mean"] <= allowed.mean * told["spread"]
    assert report["scores"]["export"]["loss"]["value"] == pytest.approx(
        report["scores"]["run"]["loss"]["value"], rel=0.05
    )
    place = folder / "exports/quantized"
    assert not (place / "plain").exists(), "the plain model it was made from is gone"
    assert (place / "README.md").is_file() and (place / "chat_template.jinja").is_file()
    assert json.loads((place / "generation_config.json").read_text())["eos_token_id"] == [1]
    export(folder, parse_export("merged", []))
    share = layer_bytes(place) / layer_bytes(folder / "exports/merged")
    assert share < (0.25 if scheme == "nf4" else 0.36), "of float32"


@pytest.mark.matrix(scheme=1)
@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_transformers_alone_opens_it(run: Callable[..., Path], scheme: str, tmp_path: Path) -> None:
    need(scheme)
    # Not the tiny one: without our repair bitsandbytes wants layers of 64 and wider on a CPU with avx512_bf16.
    folder = run("model=builtin", "train.steps=2")
    report = export(folder, parse_export("quantized", [f"scheme={scheme}"]))
    (tmp_path / "open.py").write_text(
        "\n".join([*report["use"], 'out = model.generate(**tokenizer("Say", return_tensors="pt"), max_new_tokens=3)'])
        + "\nimport sys\nassert 'luthier' not in sys.modules\nprint(type(model).__name__, out.shape[0])\n"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, tmp_path / "open.py"], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "Qwen2ForCausalLM 1", done.stderr


@pytest.mark.parametrize(("scheme", "kind"), [("int8", "bert"), ("llm_int8", "llama"), ("nf4", "bert")])
def test_a_classifier_keeps_its_head_unpacked(run: Callable[..., Path], scheme: str, kind: str) -> None:
    need(scheme)
    folder = run(task="classify", kind=kind)
    report = export(folder, parse_export("quantized", [f"scheme={scheme}"]))
    assert report["parity"][0]["held"]
    import transformers
    from safetensors import safe_open

    place = folder / "exports/quantized"
    with safe_open(place / "model.safetensors", framework="pt") as stored:
        heads = [name for name in stored.keys() if name.startswith(("score", "classifier"))]  # noqa: SIM118
        assert heads and all(stored.get_tensor(name).dtype == torch.float32 for name in heads)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(place)
    assert sorted(model.config.id2label.values()) == ["0", "1"]


def test_a_run_on_a_packed_base_is_quantized_from_the_plain_merge(run: Callable[..., Path]) -> None:
    need("nf4")
    report = export(run("method=qlora"), parse_export("quantized", ["scheme=nf4"]))
    assert report["parity"][0]["held"] and "not packed" in report["parity"][0]["against"]
    assert "nf4" in report["parity"][1]["against"] and report["parity"][1]["bound"] is None


@pytest.mark.parametrize(("base", "kind"), [("llama", "int8"), ("llama", "nf4"), ("gpt2", "int8"), ("gpt2", "nf4")])
def test_a_base_whose_own_files_are_packed_is_seen_as_packed(
    run: Callable[..., Path], model_folder: Callable[..., Path], tmp_path: Path, base: str, kind: str
) -> None:
    """GPT-2 too, whose layers (Conv1D) keep their weights the other way round than the nn.Linear that packs them."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    packing = BitsAndBytesConfig(load_in_8bit=kind == "int8", load_in_4bit=kind == "nf4", bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        model_folder(base), quantization_config=packing, device_map={"": "cpu"}
    )
    model.save_pretrained(tmp_path / "packed")
    build_tokenizer().save_pretrained(tmp_path / "packed")
    folder = run(f"model={tmp_path / 'packed'}", "method=lora")
    report = export(folder, parse_export("merged", ["dtype=float32"]))
    assert report["parity"][0]["held"] and "not packed" in report["parity"][0]["against"]
    assert f"the base in {kind}" in report["parity"][1]["against"]
    assert report["parity"][1]["bound"] is None
    # int8 rounds activations as well; 4 bit with float32 around it computes with the unpacked weights.
    assert report["parity"][1]["largest"] >= report["parity"][0]["largest"] * (10 if kind == "int8" else 1)
    config = json.loads((folder / "exports/merged/config.json").read_text())
    assert "quantization_config" not in config, "the merged model is plain"
    plain = AutoModelForCausalLM.from_pretrained(folder / "exports/merged")
    assert all(each.dtype == torch.float32 for each in plain.parameters())


def test_another_packing_does_not_merge(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run()
    monkeypatch.setattr("luthier.pipeline.export.quantization", lambda config, model: "gptq")
    with pytest.raises(CannotMerge, match=r"quantized as gptq.*\n.*--to adapter"):
        export(folder, parse_export("merged", []))


@pytest.mark.parametrize(("scheme", "factor"), [("int8", -1.0), ("nf4", 1000.0)])
def test_another_model_than_the_run_is_found_out(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, scheme: str, factor: float
) -> None:
    need(scheme)
    folder, write = run(), quantized.Merged.write

    def spoiled(self: Any, tuned: Any, place: Path) -> None:
        write(self, tuned, place)
        from safetensors.torch import load_file, save_file

        stored = load_file(place / "model.safetensors")
        name = next(name for name in sorted(stored) if "down_proj" in name)
        stored[name] = stored[name] * factor
        save_file(stored, place / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(quantized.Merged, "write", spoiled)
    with pytest.raises(Unproved, match=r"does not answer as the run does.*mean"):
        export(folder, parse_export("quantized", [f"scheme={scheme}"]))
    assert sorted(each.name for each in (folder / "exports").iterdir()) == ["quantized.failed.json"]


def test_what_cannot_be_is_said_before_anything_is_loaded(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="scheme"):
        parse_export("quantized", ["scheme=int4"])
    folder = run("method=prefix")
    with pytest.raises(CannotMerge, match="--to adapter"):
        export(folder, parse_export("quantized", []))
    monkeypatch.setattr("luthier.core.errors.find_spec", lambda name: None)
    for scheme, package in (("int8", "torchao"), ("nf4", "bitsandbytes")):
        monkeypatch.setattr("luthier.exports.base.Export.refuse", lambda self, tuned: None)
        with pytest.raises(MissingExtra, match=f"pip install '{package}>="):
            export(folder, parse_export("quantized", [f"scheme={scheme}"]))
    assert not (folder / "exports").exists()


def test_torchao_cannot_pack_gpt2_and_bitsandbytes_can(run: Callable[..., Path]) -> None:
    need("int8")
    need("nf4")
    folder = run(kind="gpt2")
    with pytest.raises(InputError, match=r"a gpt2 has none\n.*scheme=nf4"):
        export(folder, parse_export("quantized", ["scheme=int8"]))
    assert export(folder, parse_export("quantized", ["scheme=nf4"]))["parity"][0]["held"]


def test_torchao_s_four_bits_take_as_much_as_its_eight(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    """When this fails, its four bits may be offered as a scheme."""
    need("int8")
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from transformers import AutoModelForCausalLM, TorchAoConfig

    four = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    for name, packing in (("eight", Int8WeightOnlyConfig()), ("four", four)):
        AutoModelForCausalLM.from_pretrained(
            model_folder("llama"), quantization_config=TorchAoConfig(packing), device_map={"": "cpu"}
        ).save_pretrained(tmp_path / name)
    assert layer_bytes(tmp_path / "four") >= layer_bytes(tmp_path / "eight")


def test_the_command_line_quantizes_without_a_word_of_the_libraries(run: Callable[..., Path], tmp_path: Path) -> None:
    need("int8")
    done = luthier("export", run(), "--to", "quantized", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "exports/quantized" in done.stdout and "Failed to load" not in done.stderr + done.stdout
    assert "Enum" not in done.stderr
