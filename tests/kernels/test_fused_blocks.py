"""What ops puts into a model gives the model's own numbers, values and gradients, and can be taken out again."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.kernels import frozen_linear, gated_mlp, lora, rms_norm
from luthier.kernels.apply import patched
from luthier.methods.base import METHODS
from tests.methods.zoo import DECODERS, attached, base, one_step, shake

GATED = [kind for kind in DECODERS if kind != "gpt2"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_linear, "PART_BYTES", 3 * 4 * 48)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("name", ["full", "lora", "ia3", "pfeiffer", "bitfit", "unipelt", "adalora"])
def test_values_and_gradients_are_the_models_own(kind: str, name: str) -> None:
    _, model = attached(name, kind)
    shake(model)
    usual = one_step(model)
    with patched(model):
        ours = one_step(model)
    assert len(usual) == len(ours)
    for a, b in zip(usual, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=2e-4, atol=2e-6)
    assert not any("forward" in vars(m) and m.forward.__module__.startswith("luthier.kernels") for m in model.modules())


@pytest.mark.parametrize("kind", GATED)
def test_they_are_used(kind: str) -> None:
    _, model = attached("lora", kind)
    blocks = [m for m in model.modules() if type(m).__name__.endswith("MLP")]
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    assert blocks and gated_mlp.patch(model.modules()) == blocks
    assert norms and rms_norm.patch(model.modules()) == norms
    assert len(lora.patch(model.modules())) == sum(hasattr(m, "lora_A") for m in model.modules())


@pytest.mark.parametrize("targets", ["gate_proj", "down_proj", "q_proj,v_proj", "all-linear"])
def test_paths_on_some_layers_only_and_dropout(targets: str) -> None:
    fields = {"name": "lora", "rank": 4, "targets": targets, "dropout": 0.3}
    model = METHODS.parse(fields).attach(base("llama"), steps=9).train()
    shake(model)
    layer_by_layer = copy.deepcopy(model)
    lora.patch(layer_by_layer.modules())  # which draws the same masks in the same order
    with patched(model):
        one, other, third = one_step(model), one_step(layer_by_layer), one_step(model, seed=1)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(b, a, rtol=2e-4, atol=2e-6)
    assert not torch.equal(one[0], third[0]), "something is dropped"


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("autocast", [False, True])
def test_in_half_precision_they_are_as_near_to_the_truth(kind: str, autocast: bool) -> None:
    def tuned() -> nn.Module:
        _, model = attached("lora", kind)
        shake(model)
        return model

    truth, found = one_step(tuned()), []
    for ours in (False, True):
        model = tuned()
        if not autocast:
            for parameter in model.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()
        with patched(model) if ours else nullcontext(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found.append(one_step(model))
    usual, own = (
        sum(float((x.float() - right).norm() / right.norm()) for right, x in zip(truth, side, strict=True)) / len(truth)
        for side in found
    )
    # Without autocast PEFT takes A and B in float32, at the cost of a copy of the input; we in the weights' type.
    assert own <= (1.25 if autocast else 1.5) * usual


def test_putting_it_in_draws_nothing_from_torchs_state() -> None:
    model = METHODS.parse({"name": "lora", "rank": 4, "dropout": 0.3}).attach(base("llama"), steps=9).train()
    before = torch.get_rng_state()
    with patched(model, packed=True):
        pass
    assert torch.equal(before, torch.get_rng_state()) and all(module.training for module in model.modules())


def test_a_block_that_is_not_what_it_looks_like_is_left_alone() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(8, 12, bias=False), nn.Linear(8, 12, bias=False)
            self.down_proj, self.act_fn = nn.Linear(12, 8, bias=False), nn.SiLU()
            self.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) * 2)
            return made

    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.rand(8)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)

    model = nn.Sequential(Odd(), OddRMSNorm())
    assert not gated_mlp.patch(model.modules()) and not rms_norm.patch(model.modules())


def test_activation_checkpointing_changes_nothing() -> None:
    model = METHODS.parse({"name": "lora", "rank": 4, "dropout": 0.3}).attach(base("qwen2"), steps=9).train()
    shake(model)
    twin: Any = copy.deepcopy(model)
    twin.activation_checkpointing_enable({"use_reentrant": False})
    with patched(model), patched(twin):
        for a, b in zip(one_step(model), one_step(twin), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
