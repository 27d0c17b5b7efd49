"""Every method on a base in 4 and in 8 bit: it works, before and after an evaluation, or it refuses plainly.

The reference is the same adapter on the same base unpacked (`dequantize`) to float32.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401  (registers our layers, which import one another)
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from luthier.core.errors import CannotMerge, InputError, MissingExtra, ModelError, Stopped
from luthier.kernels import gated_mlp, lora
from luthier.kernels.apply import patched
from luthier.methods.base import Method
from luthier.models.load import load_model, load_tokenizer, parameter_counts, unpack
from luthier.models.settings import ModelConfig
from luthier.pipeline.prepare import on_this_machine
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.recipe.identity import read_recipe
from luthier.runs.folder import RunFolder
from tests.conftest import alpaca_rows, build_tokenizer, luthier, model_config, review_rows, write_jsonl
from tests.methods.test_promises import ROUNDED
from tests.methods.zoo import (
    NOT_THE_BASE,
    SPECS,
    attached,
    classifies,
    empty,
    ids,
    loss,
    method,
    shake,
)
from tests.training.test_training import StopAt, curve, same

pytestmark = pytest.mark.matrix

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")

KINDS = ["llama", "qwen2", "bert"]
PACKED: dict[str, dict[str, Any]] = {
    "nf4": {"quantize": "nf4"},
    "nf4-fp32": {"quantize": "nf4", "compute_dtype": "float32", "double_quant": False},
    "nf4-bf16": {"quantize": "nf4", "compute_dtype": "bfloat16"},
    "fp4": {"quantize": "fp4", "compute_dtype": "bfloat16", "double_quant": False},
    "int8": {"quantize": "int8"},
    "int8-all": {"quantize": "int8", "int8_threshold": 0.0},
}
"""nf4 and int8 are what the recipe's words give: with double quantization and float32, with a threshold of 6."""

APART = {"nf4": 1e-5, "nf4-fp32": 1e-5, "nf4-bf16": 1e-2, "fp4": 1e-2, "int8": 2e-2, "int8-all": 2e-2}
"""Bound on the logits against the unpacked base, relative: bfloat16 products, activations in 8 bit, or only order."""

REFUSED = {
    "full": "cannot train a quantized base",
    "freeze": "cannot train a quantized base",
    "pissa": "needs the unpacked weights of the base",
    "lora (bias)": "trains the base's own biases",
    **dict.fromkeys(("loha", "lokr", "peft (boft)"), "cannot train a quantized base"),
}
WORKING = [name for name in SPECS if name not in REFUSED]
CELLS = [
    pytest.param(name, kind, packing, id=f"{name}-{kind}-{packing}")
    for name in WORKING
    for kind in KINDS
    for packing in ("nf4", "int8")
]
SPREAD = [
    pytest.param(name, kind, packing, id=f"{name}-{kind}-{packing}")
    for name, kind, packings in (
        *(("lora", kind, [p for p in PACKED if p not in ("nf4", "int8")]) for kind in KINDS),
        *((name, "gpt2", ["nf4", "nf4-fp32", "int8"]) for name in ("lora", "dora", "ia3", "bitfit")),
    )
    for packing in packings
]
"""The other settings, and GPT-2, whose layers keep their weights the other way round."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a small model whose layers are whole blocks of 64; BERT comes as a masked model, so its head is new."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        import transformers as t

        if kind not in made:
            config = model_config(kind)
            wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16} if kind != "gpt2" else {"n_embd": 64}
            off = ("hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop")
            for key, value in {**wide, **dict.fromkeys(off, 0.0)}.items():
                if hasattr(config, key):
                    setattr(config, key, value)
            torch.manual_seed(1)
            auto = t.AutoModelForMaskedLM if kind == "bert" else t.AutoModelForCausalLM
            model = auto.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.02)
            made[kind] = tmp_path_factory.mktemp("packed") / kind
            model.save_pretrained(made[kind])
            build_tokenizer().save_pretrained(made[kind])
        return made[kind]

    return make


class Bases:
    """The models of a kind as a run loads them, in evaluation mode; the head is the same each time."""

    def __init__(self, folders: Callable[[str], Path]) -> None:
        self.folders = folders
        self.kept: dict[tuple[str, ...], Any] = {}

    def load(self, kind: str, packing: str = "none", path: Path | None = None) -> Any:
        config = ModelConfig(path=str(path or self.folders(kind)), **PACKED.get(packing, {}))
        tokenizer = self.once(("tokenizer",), lambda: load_tokenizer(config, config.path))
        torch.manual_seed(0)
        labels = ("a", "b", "c") if classifies(kind) else None
        return load_model(config, config.path, labels=labels, tokenizer=tokenizer).eval()

    def once(self, key: tuple[str, ...], make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def logits(self, kind: str, packing: str) -> Tensor:
        """Of the untouched base."""
        found: Tensor = self.once(("logits", kind, packing), lambda: evaluated(self.load(kind, packing), ids(kind)))
        return found

    def unpacked(self, kind: str, packing: str) -> Any:
        """The packed model in float32, with its biases as a first use leaves them."""

        def make() -> Any:
            model = self.load(kind, packing)
            evaluated(model, ids(kind))
            return unpack(model).eval()

        return copy.deepcopy(self.once(("unpacked", kind, packing), make))


@pytest.fixture(scope="session")
def bases(folders: Callable[[str], Path]) -> Bases:
    from transformers.utils import logging

    logging.set_verbosity_error()  # else a report of BERT's new head, a hundred times over
    return Bases(folders)


def pair(name: str, kind: str, packing: str, bases: Bases) -> tuple[Method, nn.Module, nn.Module]:
    """(method, tuned packed model, the same adapter on the unpacked base), away from their start."""
    tuner, model = attached(name, kind, model=bases.load(kind, packing))
    _, reference = attached(name, kind, model=bases.unpacked(kind, packing))
    shake(model)
    own, other = trained(model), trained(reference)
    assert own.keys() == other.keys()
    drawn = {n: b for n, b in model.named_buffers() if "vera_" in n}  # in the type of the product
    other_drawn = dict(reference.named_buffers())
    with torch.no_grad():
        for key, value in own.items():
            other[key].copy_(value)
        for key, value in drawn.items():
            other_drawn[key].copy_(value)
    return tuner, model, reference


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.train()
    loss(model, x).backward()
    found = {name: p.grad.clone() for name, p in trained(model).items() if p.grad is not None}
    model.zero_grad()
    model.eval()
    return found


def cosine(found: dict[str, Tensor], told: dict[str, Tensor]) -> float:
    assert found.keys() == told.keys()
    a, b = (torch.cat([part[key].flatten().double() for key in told]) for part in (found, told))
    return float(a @ b / (a.norm() * b.norm()))


def evaluated(model: nn.Module, x: Tensor) -> Tensor:
    """Logits as an evaluation takes them. This is what bitsandbytes repacks at."""
    model.eval()
    with torch.inference_mode():
        found: Tensor = model(input_ids=x).logits
    return found[:, -x.shape[1] :].clone() if found.ndim == 3 else found.clone()


def apart(found: Tensor, told: Tensor) -> float:
    return float((found - told).norm() / told.norm())


def packed_bytes(model: nn.Module) -> list[bytes]:
    """Packed weights with their scales, layer by layer, byte for byte."""
    kept = []
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "source_cls"):  # what transformers marks the layers with that it packs
            if type(layer).__name__ == "Linear4bit":
                scales = layer.weight.quant_state.absmax
            else:
                scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
            kept.append(layer.weight.data.numpy().tobytes() + scales.numpy().tobytes())
    assert kept
    return kept


def test_every_method_works_or_is_refused() -> None:
    assert set(WORKING) | set(REFUSED) == set(SPECS)
    assert {name for name in SPECS if not method(name).quantized_base} == {
        "full",
        "freeze",
        "loha",
        "lokr",
        "peft (boft)",
    }


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_gives_the_reason_and_the_fix_before_any_weights(name: str, kind: str, quantize: str) -> None:
    with pytest.raises(InputError, match=REFUSED[name]) as error:
        method(name).check(empty(kind), classify=classifies(kind), quantize=quantize)
    assert "model.quantize=none" in error.value.fix
    method(name).check(empty(kind), classify=classifies(kind))


@pytest.mark.parametrize(("name", "kind", "packing"), [*CELLS, *SPREAD])
def test_gradients_are_those_of_the_unpacked_base_before_and_after_an_evaluation(
    name: str, kind: str, packing: str, bases: Bases, kept: Any
) -> None:
    """And: step zero is the base, only the method trains, and no byte of the base changes."""
    x = ids(kind)
    method(name, kind).check(empty(kind), classify=classifies(kind), quantize=PACKED[packing]["quantize"])
    base = bases.load(kind, packing)
    own = {n for n, _ in base.named_parameters()}
    tuner, model = attached(name, kind, model=base)
    before = packed_bytes(model)
    start = (evaluated(model, x) - bases.logits(kind, packing)).abs().max()
    # Compacter starts beside zero, as its authors have it, which may turn the rounding of a base that computes in bfloat16.
    near = 1e-3 if "compacter" in name else 1e-6
    assert start > 1e-6 if tuner.name in NOT_THE_BASE else start < near
    assert not {n for n in trained(model) if n.removeprefix("base_model.").removeprefix("model.") in own}
    assert all(p.dtype == torch.float32 for p in trained(model).values())
    assert bool({n for n in trained(model) if "modules_to_save" in n}) == classifies(kind)

    _, model, reference = pair(name, kind, packing, bases)
    told = gradients(reference, x)
    assert cosine(gradients(model, x), told) > 0.999
    first = evaluated(model, x)
    assert cosine(gradients(model, x), told) > 0.999
    assert apart(first, evaluated(reference, x)) < APART[packing]

    optimizer = torch.optim.AdamW(list(trained(model).values()), lr=1e-2)
    model.train()
    loss(model, x).backward()
    optimizer.step()
    assert (evaluated(model, x) - first).abs().max() > 1e-5
    assert packed_bytes(model) == before
    kept(name, kind, f"8 trains {packing}")


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma"])
def test_fused_layers_on_a_packed_base_are_pefts(
    kind: str, packing: str, bases: Bases, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = ids(kind)
    _, model, reference = pair("lora", kind, packing, bases)
    usual, told = gradients(model, x), gradients(reference, x)
    calls = []
    for part in (lora, gated_mlp):
        monkeypatch.setattr(part, "backward", lambda *a, real=part.backward, **k: (calls.append(1), real(*a, **k))[1])
    with patched(model):
        first = evaluated(model, x)
        for _ in range(2):  # and after an evaluation
            ours = gradients(model, x)
            assert cosine(ours, usual) > 0.9999 and cosine(ours, told) > 0.999
            assert apart(evaluated(model, x), first) == 0
    assert len(calls) == 2 * 7 * model.config.num_hidden_layers  # type: ignore[union-attr]
    assert apart(first, evaluated(model, x)) < APART[packing] / 2


@pytest.mark.parametrize(("name", "kind", "packing"), CELLS)
def test_saved_loaded_and_switched_off(
    name: str, kind: str, packing: str, bases: Bases, tmp_path: Path, kept: Any
) -> None:
    """An evaluation changes no saved byte; on a newly loaded base the logits are the same, and without it the base's."""
    x = ids(kind)
    tuner, model = attached(name, kind, model=bases.load(kind, packing))
    shake(model)
    tuner.save(model, tmp_path / "before")
    told = evaluated(model, x)
    tuner.save(model, tmp_path / "after")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "after"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    again = tuner.load(bases.load(kind, packing), tmp_path / "after")
    for _ in range(2):
        assert (evaluated(again, x) - told).abs().max() <= ROUNDED.get(name, 0.0)
    switch = tuner.disabled(model)
    assert switch is not None
    with switch:
        assert torch.equal(evaluated(model, x), bases.logits(kind, packing))
    assert torch.equal(evaluated(model, x), told)
    kept(name, kind, f"8 saves {packing}")


@pytest.mark.parametrize(("name", "kind", "packing"), [*CELLS, *SPREAD])
def test_merged_is_the_adapter_on_the_unpacked_base_or_refused(
    name: str, kind: str, packing: str, bases: Bases, tmp_path: Path, kept: Any
) -> None:
    """After an evaluation, too. The merged model is a plain one: saved, transformers loads it as the architecture."""
    x = ids(kind)
    tuner, model, reference = pair(name, kind, packing, bases)
    told = evaluated(model, x)
    if not tuner.mergeable:
        with pytest.raises(CannotMerge, match=tuner.name):
            tuner.merge(model)
        assert torch.equal(evaluated(model, x), told)
        kept(name, kind, f"8 merges {packing}")
        return
    merged: Any = tuner.merge(model)
    found = evaluated(merged, x)
    assert (found - evaluated(reference, x)).abs().max() < 2e-5
    assert apart(found, told) < APART[packing]
    if name == "lora":
        merged.save_pretrained(tmp_path / "m")
        again = type(merged).from_pretrained(tmp_path / "m")
        assert torch.equal(evaluated(again, x), found)
        assert {p.dtype for p in again.parameters()} == {torch.float32}
    kept(name, kind, f"8 merges {packing}")


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("kind", [*KINDS, "gpt2"])
def test_a_base_is_packed_as_asked_and_near_what_it_was(kind: str, packing: str, bases: Bases) -> None:
    """The head is left alone, and parameters count unpacked. Bounds: 4 bit lose some 15 %, 8 bit some 1 %, by logits."""
    model, plain, x = bases.load(kind, packing), bases.load(kind), ids(kind)
    settings = PACKED[packing]
    layers = {n: m for n, m in model.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")}
    assert len(layers) == 2 * {"llama": 7, "qwen2": 7, "bert": 6, "gpt2": 4}[kind]
    for layer in layers.values():
        if settings["quantize"] == "int8":
            assert layer.state.threshold == settings.get("int8_threshold", 6.0)
        else:
            state = layer.weight.quant_state
            assert (state.quant_type, state.nested) == (settings["quantize"], settings.get("double_quant", True))
            assert layer.compute_dtype == getattr(torch, settings.get("compute_dtype", "float32"))
    assert parameter_counts(model)[1] == sum(p.numel() for p in plain.parameters())
    assert apart(evaluated(model, x), evaluated(plain, x)) < (0.05 if settings["quantize"] == "int8" else 0.4)


def test_a_base_stored_in_four_bit_is_taken_as_it_is(bases: Bases, folders: Any, tmp_path: Path) -> None:
    """And a method that cannot train it is refused, though the recipe names no packing."""
    model, x = bases.load("llama", "nf4"), ids("llama")
    told = evaluated(model, x)
    model.save_pretrained(tmp_path / "stored")
    build_tokenizer().save_pretrained(tmp_path / "stored")
    again = bases.load("llama", path=tmp_path / "stored")
    assert torch.equal(evaluated(again, x), told) and packed_bytes(again) == packed_bytes(model)
    file = write_jsonl(tmp_path / "a.jsonl", alpaca_rows(30))
    common = [f"model={tmp_path / 'stored'}", f"data={file}", f"run={tmp_path / 'run'}"]
    with pytest.raises(InputError, match="cannot train a quantized base"):
        train(RunConfig.load(None, [*common, "method=full"]))
    with pytest.raises(ModelError, match=r"stored as nf4, not int8"):
        train(RunConfig.load(None, [*common, "model.quantize=int8"]))
    result = train(RunConfig.load(None, [*common, "train.steps=8", "train.lr=2e-2", "evaluate.generate=0"]))
    assert result["tuned"]["loss"]["value"] < result["base"]["loss"]["value"]


def test_without_our_repair_an_evaluation_spoils_four_bit_layers(bases: Bases) -> None:
    """When this fails, bitsandbytes has fixed it, and `support_avx512bf16_for_cpu = False` may go from models/load.py."""
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no avx512_bf16: bitsandbytes repacks nothing here")
    x = ids("llama")
    _, model, reference = pair("lora", "llama", "nf4", bases)
    layers = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True  # type: ignore[assignment]
    told = gradients(reference, x)
    assert cosine(gradients(model, x), told) > 0.999
    evaluated(model, x)
    assert cosine(gradients(model, x), told) < 0.9


def test_without_our_repair_dora_loses_the_scales_of_int8_layers(bases: Bases) -> None:
    """When this fails, PEFT has fixed it, and `_keep_scales` may go from models/load.py."""
    base = bases.load("llama", "int8")
    for module in base.modules():
        module._forward_pre_hooks.clear()
    _, model = attached("dora", "llama", model=base)
    evaluated(model, ids("llama"))
    with pytest.raises(AttributeError, match="NoneType"):
        evaluated(model, ids("llama"))


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["model.quantize=nf4", "model.compute_dtype=float16"], MissingExtra, "float16 cannot serve on a CPU"),
        (["model.quantize=int8", "model.init=random"], ModelError, "trains all weights"),
    ],
)
def test_what_cannot_serve_here_is_refused_before_anything_is_read(
    overrides: list[str], error: type[InputError], words: str
) -> None:
    if torch.cuda.is_available() and "float16" in words:
        pytest.skip("a GPU serves float16")
    with pytest.raises(error, match=words) as told:
        on_this_machine(RunConfig.load(None, overrides))
    assert told.value.fix


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("full", ["method=full"], "method full cannot train a quantized base"),
        ("freeze", ["method=freeze"], "method freeze cannot train a quantized base"),
        ("pissa", ["method=pissa"], "method.init=pissa needs the unpacked weights"),
    ],
)
def test_a_run_with_a_refused_method_leaves_nothing(
    name: str, overrides: list[str], words: str, folders: Any, tmp_path: Path
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", alpaca_rows(20))
    with pytest.raises(InputError, match=words):
        train(
            RunConfig.load(
                None,
                [
                    f"model={folders('llama')}",
                    f"data={file}",
                    f"run={tmp_path / 'r'}",
                    "model.quantize=nf4",
                    *overrides,
                ],
            )
        )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("name", "kind", "recipe"),
    [("qlora", "qwen2", ("nf4", "paged_adamw")), ("lora_int8", "llama", ("int8", "adamw"))],
)
def test_from_the_shell(name: str, kind: str, recipe: tuple[str, str], folders: Any, tmp_path: Path) -> None:
    file, run = write_jsonl(tmp_path / "a.jsonl", alpaca_rows(40)), tmp_path / "run"
    done = luthier(
        "train",
        f"model={folders(kind)}",
        f"data={file}",
        f"method={name}",
        f"run={run}",
        "train.steps=12",
        "train.lr=1e-2",
        "train.batch_size=8",
        "train.evaluate_every=5",
        "evaluate.generate=2",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no message of bitsandbytes that tells a user nothing"
    assert f"model.quantize={recipe[0]}" in done.stdout
    config = read_recipe(RunFolder(run))
    assert (config.model.quantize, config.train.optimizer) == recipe
    losses = curve(run)
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.3
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    told = json.loads((run / "result.json").read_text())
    again = luthier("evaluate", run)
    assert again.returncode == 0, again.stderr
    found = json.loads((run / "result.json").read_text())
    for part in ("base", "tuned"):
        assert found[part]["loss"]["value"] == pytest.approx(told[part]["loss"]["value"], abs=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "name"), [("paged_adamw", "qlora"), ("adamw_8bit", "lora_int8"), ("paged_adamw_8bit", "qlora")]
)
def test_a_stopped_run_goes_on_bit_for_bit(optimizer: str, name: str, folders: Any, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", alpaca_rows(30))
    common = [
        f"model={folders('qwen2')}",
        f"data={file}",
        f"method={name}",
        "method.rank=32",
        "method.dropout=0.1",
        f"train.optimizer={optimizer}",
        "train.steps=6",
        "train.lr=1e-2",
        "train.batch_size=8",
        "train.save_every=2",
        "train.evaluate_every=3",
        "train.keep=9",
        "evaluate.generate=0",
    ]
    train(RunConfig.load(None, [*common, f"run={tmp_path / 'whole'}"]))
    for at in (1, 4) if optimizer == "adamw_8bit" else (4,):
        run = tmp_path / f"stopped-{at}"
        with pytest.raises(Stopped):
            train(RunConfig.load(None, [*common, f"run={run}"]), progress=StopAt(at))
        stored = load_file(next((run / "checkpoints").glob(f"step-{at:06d}")) / "state.safetensors")
        states = {v.dtype for k, v in stored.items() if k.endswith(("state1", "state2"))}
        assert (torch.uint8 in states) == ("8bit" in optimizer), "states of 4096 numbers and more lie in 8 bit"
        train(RunConfig.load(None, [*common, f"run={run}"]))
        assert curve(run) == curve(tmp_path / "whole") and same(run, tmp_path / "whole")


def test_a_packed_encoder_classifies(folders: Any, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "r.jsonl", review_rows(60))
    for quantize in ("nf4", "int8"):
        result = train(
            RunConfig.load(
                None,
                [
                    f"model={folders('bert')}",
                    f"data={file}",
                    f"run={tmp_path / quantize}",
                    "task=classify",
                    "method=lora",
                    f"model.quantize={quantize}",
                    "train.steps=20",
                    "train.lr=1e-2",
                    "train.head_lr=1e-2",
                ],
            )
        )
        assert result["tuned"]["loss"]["value"] < result["base"]["loss"]["value"] - 0.01
