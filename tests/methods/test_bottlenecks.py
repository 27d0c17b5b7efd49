"""AdapterDrop, Compacter and AdapterFusion: their formulas, what a step leaves out, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import InputError
from luthier.kernels.apply import checkpoint_layers
from luthier.methods.base import METHODS
from luthier.methods.layers.bottleneck import PHM, Bottleneck, drop_lowest
from luthier.methods.layers.fusion import Fused
from luthier.pipeline.evaluate import evaluate
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.rendering.example import Message
from luthier.serving.engine.engine import Engine
from luthier.serving.engine.requests import SamplingParams
from tests.conftest import alpaca_rows, write_jsonl
from tests.methods.zoo import attached, base, empty, fused, ids, logits, loss, method, shake

DROPS = METHODS.parse({"name": "pfeiffer", "size": 8, "drop": 1, "drop_each_step": True})


def bottlenecks(model: Any) -> list[Bottleneck]:
    return [module for module in model.modules() if isinstance(module, Bottleneck)]


def test_compacter_is_a_sum_of_kronecker_products_with_one_rule() -> None:
    torch.manual_seed(0)
    layer = PHM(12, 8, 4)
    wanted = sum(torch.kron(layer.rule[i], torch.outer(layer.left[i], layer.right[i])) for i in range(4))
    torch.testing.assert_close(layer.matrix(), wanted)
    x = torch.randn(2, 3, 12)
    torch.testing.assert_close(layer(x), x @ layer.matrix() + layer.bias)
    _, model = attached("compacter", "llama")
    rules = {id(part.rule) for part in model.modules() if isinstance(part, PHM)}
    assert len(rules) == 1


@pytest.mark.parametrize(("settings", "words"), [({"phm": 3}, "phm=3 must divide"), ({"drop": 2}, "leaves no adapter")])
def test_what_does_not_fit_the_model_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        METHODS.parse({"name": "adapter", **settings}).check(empty("llama"))


def test_a_step_leaves_out_what_seed_and_number_say() -> None:
    model = DROPS.attach(base("llama"), steps=5)

    def chosen(seed: int) -> list[bool]:
        found = []
        for index in range(1, 21):
            DROPS.before_step(model, index, seed)
            found.append(bottlenecks(model)[0].sits_out)
        return found

    first = chosen(1)
    assert chosen(2) != first == chosen(1) and {True, False} == set(first)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_backward_pass_ends_above_the_layers_left_out(checkpointing: bool) -> None:
    for spec, step in (({"drop": 1}, None), ({"drop": 1, "drop_each_step": True}, 1)):
        tuner = METHODS.parse({"name": "pfeiffer", "size": 8, **spec})
        model: Any = tuner.attach(base("llama"), steps=5).train()
        if checkpointing:
            checkpoint_layers(model)
        seed = next(s for s in range(99) if step is None or _sits_out(tuner, model, s))
        tuner.before_step(model, 1, seed)
        grown: list[bool] = []
        layers = model.get_base_model().model.layers
        handles = [each.register_forward_hook(partial(_note, grown)) for each in layers]
        loss(model, ids("llama")).backward()
        assert grown[:2] == [False, True]
        gradients = {each.block: each.held("up")["default"].weight.grad is not None for each in bottlenecks(model)}
        assert gradients.get(0, False) is False and gradients[1] is True
        model.eval()
        shake(model)
        if step is not None:
            assert (logits(model, ids("llama")) - logits(drop_lowest(model, 1, "x"), ids("llama"))).abs().max() > 1e-3
        for handle in handles:
            handle.remove()


def _sits_out(tuner: Any, model: Any, seed: int) -> bool:
    tuner.before_step(model, 1, seed)
    return bottlenecks(model)[0].sits_out


def _note(grown: list[bool], _module: Any, _inputs: Any, output: Any) -> None:
    grown.append((output[0] if isinstance(output, tuple) else output).requires_grad)


def test_dropped_for_use_is_as_if_the_lowest_had_never_been() -> None:
    _, model = attached("houlsby", "llama")
    shake(model)
    for layer in bottlenecks(model):
        if layer.block == 0:
            for short in ("down", "up"):
                kept = layer.held(short)["default"]
                layer.held(short)["default"] = torch.nn.Linear(kept.in_features, kept.out_features)
                torch.nn.init.zeros_(layer.held(short)["default"].weight)
                torch.nn.init.zeros_(layer.held(short)["default"].bias)
    zeroed = logits(model, ids("llama"))
    torch.testing.assert_close(logits(drop_lowest(model, 1, "x"), ids("llama")), zeroed)
    with pytest.raises(InputError, match="no adapter left"):
        drop_lowest(model, 2, "x")
    for name in ("lora", "mam"):
        with pytest.raises(InputError, match="whose lowest layers can be left out"):
            drop_lowest(attached(name, "llama")[1], 1, "x")


def test_fusion_is_its_formula_and_of_one_adapter_nearly_that_adapter() -> None:
    torch.manual_seed(0)
    model: Any = method("fusion").attach(base("llama"), steps=1).eval()
    shake(model)
    layer = next(module for module in model.modules() if isinstance(module, Fused))
    query, key, value = (layer.held(short)["default"] for short in ("query", "key", "value"))
    parts = []
    for folder in fused("llama"):
        own = METHODS.parse({"name": "pfeiffer", "size": 8}).load(base("llama"), Path(folder)).eval()
        parts.append(next(module for module in own.modules() if isinstance(module, Bottleneck)))
    u = torch.randn(2, 3, 32)
    with torch.no_grad():
        made = [part.delta("default", u) for part in parts]
        scores = torch.stack([(query(u) * key(d)).sum(-1) for d in made], -1)
        shares = scores.softmax(-1)
        wanted = sum(shares[..., n, None] * value(d) for n, d in enumerate(made))
        torch.testing.assert_close(layer.delta("default", u), wanted)
    alone = METHODS.parse({"name": "fusion", "adapters": fused("llama")[:1]}).attach(base("llama"), steps=1).eval()
    own = METHODS.parse({"name": "pfeiffer", "size": 8}).load(base("llama"), Path(fused("llama")[0])).eval()
    torch.testing.assert_close(logits(alone, ids("llama")), logits(own, ids("llama")), atol=1e-3, rtol=0)


@pytest.mark.parametrize("spec", [{"name": "compacter", "size": 8}, {"name": "scaled_parallel", "learned_scale": True}])
def test_fusion_takes_other_bottlenecks_as_they_answer(spec: dict[str, Any], tmp_path: Path) -> None:
    tuner = METHODS.parse(spec)
    model = tuner.attach(base("llama"), steps=1)
    shake(model, spread=0.3)
    tuner.save(model, tmp_path)
    told = logits(model.eval(), ids("llama"))
    alone = METHODS.parse({"name": "fusion", "adapters": [str(tmp_path)]}).attach(base("llama"), steps=1).eval()
    torch.testing.assert_close(logits(alone, ids("llama")), told, atol=2e-3, rtol=0)


def test_fusion_says_which_adapter_does_not_fit(tmp_path: Path) -> None:
    one = fused("llama")[0]

    def saved(kind: str, folder: str, **spec: Any) -> str:
        tuner = METHODS.parse({"size": 4, "name": "pfeiffer", **spec} if spec.get("name") != "lora" else spec)
        model = tuner.attach(base(kind), steps=1)
        if folder == "moved":
            model.peft_config["default"].base_model_name_or_path = "/models/other"
        tuner.save(model, tmp_path / folder)
        return str(tmp_path / folder)

    (tmp_path / "none").mkdir()
    for adapters, words in (
        ((), "no adapters to fuse"),
        ((one, str(tmp_path / "gone")), "there is no such folder"),
        ((one, str(tmp_path / "none")), "it holds no adapter"),
        ((one, saved("llama", "lora", name="lora")), r"is no bottleneck adapter \(lora\)"),
        ((one, saved("llama", "houlsby", name="houlsby")), "different places: place is pfeiffer"),
        ((one, saved("llama", "dropped", drop=1)), "adapters in different layers"),
        ((saved("gpt2", "gpt2"),), "not found in the base model"),
    ):
        with pytest.raises(InputError, match=words):
            METHODS.parse({"name": "fusion", "adapters": adapters}).check(empty("llama"))
    moved = base("llama")
    moved.name_or_path = moved.config._name_or_path = "/models/mine"
    with pytest.raises(InputError, match="was trained on another base"):
        METHODS.parse({"name": "fusion", "adapters": (saved("llama", "moved"),)}).attach(moved, steps=1)


def test_runs_are_fused_evaluated_without_low_layers_and_served_when_their_sources_are_gone(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(24))

    def run(name: str, *own: str) -> Path:
        common = [f"model={model_folder('qwen2')}", f"data={data}", f"run={tmp_path / name}", "train.steps=4"]
        common += ["train.lr=0.01", "data.validation=0.2", "evaluate.before=false", "evaluate.generate=0"]
        train(RunConfig.load(None, [*common, *own]))
        return tmp_path / name

    sources = [
        run(name, "method=pfeiffer", "method.size=8", f"seed={seed}") for seed, name in enumerate(("one", "two"))
    ]
    made = run("fused", "method=fusion", f"method.adapters={sources[0]},{sources[1]}")
    for source in sources:
        shutil.rmtree(source)
    whole, less = evaluate(made), evaluate(made, drop_layers=1)
    assert less["drop_layers"] == 1 and "drop_layers" not in whole
    assert less["validation_loss"] != whole["validation_loss"] if "validation_loss" in whole else less != whole
    answers = []
    for dropped in (0, 1):
        engine = Engine.open([f"fused={made}"], rows=1, drop_layers=dropped)
        answers.append("".join(engine.stream([Message("user", "Hi")], SamplingParams(max_tokens=6), model="fused")))
        engine.close()
    assert all(answers)
    with pytest.raises(InputError, match="would have no adapter left"):
        evaluate(made, drop_layers=2)
