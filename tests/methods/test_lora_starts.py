"""Starts of LoRA: at the base's function where promised, taken off again exactly, saved for plain PEFT, resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from luthier.core.errors import InputError, Stopped
from luthier.methods.base import METHODS
from luthier.methods.lora import TAKEN_OUT
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from tests.conftest import alpaca_rows, write_jsonl
from tests.methods.test_experts import start as start_run
from tests.methods.zoo import base, empty, ids, logits, shake
from tests.strangers.test_architectures import build
from tests.training.test_training import StopAt, curve, same

INITS = ["gaussian", "orthogonal", "pissa", "olora", "eva", "corda", "lora_ga"]


def losses(kind: str) -> list[Callable[[Any], Tensor]]:
    """Of 24 rows, as a run gives them."""
    made = [torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(i)) for i in range(24)]
    return [lambda model, x=x: model(input_ids=x, labels=x, use_cache=False).loss for x in made]


def begun(init: str, model: Any, **fields: Any) -> tuple[Any, Any]:
    method = METHODS.parse({"name": "lora", "rank": 4, "alpha": 6.0, "init": init, **fields})
    torch.manual_seed(3)
    tuned = method.attach(model, steps=20).eval()
    method.begin(tuned, losses("qwen2"))
    return method, tuned


@pytest.mark.matrix
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
@pytest.mark.parametrize("init", INITS)
def test_a_start_is_the_base_and_what_is_trained_from_it_is_kept(init: str, kind: str, tmp_path: Path) -> None:
    x, plain = ids(kind), logits(base(kind), ids(kind))
    method, model = begun(init, base(kind))
    first = dict(model.named_parameters())
    b = [p for n, p in first.items() if ".lora_B." in n]
    assert all(bool(p.any()) is (init not in ("gaussian", "eva")) for p in b)
    a = next(p for n, p in first.items() if ".lora_A." in n)
    _, usual = begun("default", base(kind))
    assert not torch.equal(a, next(p for n, p in usual.named_parameters() if ".lora_A." in n))
    torch.testing.assert_close(logits(model, x), plain, atol=1e-5, rtol=0)
    shake(model, 0.05)
    tuned = logits(model, x)
    assert (tuned - plain).abs().max() > 1e-2
    context = method.disabled(model)
    assert context is not None
    with context:
        torch.testing.assert_close(logits(model, x), plain, atol=1e-5, rtol=0)
    method.save(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == (8 if init in TAKEN_OUT else 4)
    for again in (
        PeftModel.from_pretrained(base(kind), str(tmp_path)).eval(),
        method.load(base(kind), tmp_path).eval(),
    ):
        torch.testing.assert_close(logits(again, x), tuned, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(method.merge(model).eval(), x), tuned, atol=1e-5, rtol=0)


def test_corda_and_lora_ga_are_what_their_papers_say() -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    weight = base("qwen2").get_submodule("model.layers.0.self_attn.q_proj").weight.detach()
    model = base("qwen2")
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().flatten(0, 1)))
    for loss in losses("qwen2"):
        loss(model).backward()
    inputs, grad = torch.cat(seen), layer.weight.grad
    assert grad is not None

    _, tuned = begun("lora_ga", base("qwen2"))
    own = tuned.get_submodule(name)
    a, b = own.lora_A["default"].weight, own.lora_B["default"].weight
    u, _, vh = torch.linalg.svd(grad)
    size = (32**0.25 / 4) ** 2
    torch.testing.assert_close(a @ a.T, size * torch.eye(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(b.T @ b, size * torch.eye(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(a.T @ a, size * vh[:4].T @ vh[:4], atol=1e-3, rtol=0)
    torch.testing.assert_close(b @ b.T, size * u[:, 4:8] @ u[:, 4:8].T, atol=1e-3, rtol=0)

    _, tuned = begun("corda", base("qwen2"))
    own = tuned.get_submodule(name)
    delta = 1.5 * (own.lora_B["default"].weight @ own.lora_A["default"].weight).detach()
    covariance = inputs.T @ inputs
    covariance = covariance / covariance.diagonal().mean() + 0.01 * torch.eye(32)
    u, s, vh = torch.linalg.svd(weight @ covariance)
    torch.testing.assert_close(delta @ covariance, u[:, :4] * s[:4] @ vh[:4], atol=1e-2 * float(s[0]), rtol=0)

    _, tuned = begun("eva", base("qwen2"))
    a = tuned.get_submodule(name).lora_A["default"].weight.detach()
    _, _, vh = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False)
    torch.testing.assert_close(a @ a.T, torch.eye(4), atol=1e-4, rtol=0)
    assert ((vh[:2] @ a.T) ** 2).sum() > 1.8, "its span holds the two largest directions of the inputs"


@pytest.mark.parametrize("init", ["pissa", "eva", "lora_ga", "orthogonal", "gaussian"])
def test_experts_start_as_usual_beside_it(init: str, tmp_path: Path) -> None:
    x = torch.arange(3, 25).view(2, 11)
    with torch.no_grad():
        plain = build("deepseek_v3")(input_ids=x).logits
        method, model = begun(init, build("deepseek_v3"))
        torch.testing.assert_close(model(input_ids=x).logits, plain, atol=1e-5, rtol=0)
        shake(model, 0.05)
        tuned = model(input_ids=x).logits
        method.save(model, tmp_path)
        torch.testing.assert_close(method.load(build("deepseek_v3"), tmp_path).eval()(input_ids=x).logits, tuned)


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_a_run_that_starts_from_its_rows_resumes_bit_for_bit(
    init: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model, data = model_folder("qwen2"), write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(24))
    settings = [f"method.init={init}", "method.start_rows=16", "method.dropout=0.1"]
    start_run(model, data, tmp_path / "whole", *settings)
    with pytest.raises(Stopped):
        start_run(model, data, tmp_path / "run", *settings, progress=StopAt(3))
    start_run(model, data, tmp_path / "run", *settings)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("init", ["corda", "lora_ga"])
def test_a_checkpoint_beside_a_trained_head_restores_the_start(init: str, tmp_path: Path) -> None:
    x = ids("bert")
    rows = [lambda model: model(input_ids=x).logits.square().sum()]
    method = METHODS.parse({"name": "lora", "rank": 4, "init": init})
    model = method.attach(base("bert"), steps=5, classify=True).eval()
    method.begin(model, rows)
    shake(model, 0.05)
    tuned = logits(model, x)
    method.save(model, tmp_path, training=True)
    again = method.attach(base("bert"), steps=5, classify=True).eval()
    method.restore(again, tmp_path)
    method.restore(again, tmp_path)  # the best checkpoint, at the end of a run
    assert torch.equal(logits(again, x), tuned)


def test_loftq_starts_nearer_to_the_base_than_packing_leaves_it(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    from luthier.models.load import load_model, load_tokenizer
    from luthier.models.settings import ModelConfig

    folder = str(model_folder("qwen2"))
    config = ModelConfig(path=folder, quantize="nf4", compute_dtype="float32")
    tokenizer = load_tokenizer(config, folder)

    def read(config: Any) -> Any:
        return load_model(config, folder, labels=None, tokenizer=tokenizer).eval()

    whole, packed = read(ModelConfig(path=folder)), read(config)
    x = ids("qwen2")
    method = METHODS.parse({"name": "lora", "rank": 8, "init": "loftq"})
    gap = (logits(packed, x) - logits(whole, x)).norm()
    model = method.attach(packed, steps=5).eval()
    assert (logits(model, x) - logits(whole, x)).norm() < 0.9 * gap
    tuned = logits(model, x)
    method.save(model, tmp_path)
    torch.testing.assert_close(logits(method.load(read(config), tmp_path).eval(), x), tuned, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("fields", "quantize", "why"),
    [
        *[({"init": init}, "nf4", f"init={init} needs the unpacked weights") for init in TAKEN_OUT],
        ({"init": "loftq"}, "none", "model.quantize=none loses nothing"),
        ({"init": "lora_ga", "rank": 10}, "none", "20 is more than the .*\n.*method.rank=8: lora_ga takes twice"),
        ({"init": "loftq"}, "nf4", "hold no .* as it was before packing"),
    ],
)
def test_what_cannot_be_is_refused_before_any_weights(fields: dict[str, Any], quantize: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        METHODS.parse({"name": "lora", **fields}).check(empty("qwen2"), quantize=quantize)


def test_settings_that_exclude_one_another_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs an even rank"):
        METHODS.parse({"name": "lora", "init": "orthogonal", "rank": 3})
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(4))
    more = ["data.streaming=true", "train.steps=2", "method=lora", "method.init=eva"]
    with pytest.raises(InputError, match="has no rows to start from"):
        train(RunConfig.load(None, [f"data={data}", f"run={tmp_path}/run", *more]))
