"""LoRA in one function is PEFT's LoRA: value, gradients, and everything that PEFT does with its layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.kernels import lora
from luthier.kernels.lora import Dropped, LowRank, lora_linear
from luthier.methods.base import METHODS
from tests.methods.zoo import DECODERS, base, one_step


def tuned(kind: str = "llama", plain: bool = False, **fields: Any) -> nn.Module:
    torch.manual_seed(3)
    model = METHODS.parse({"name": "lora", **fields}).attach(base(kind), steps=10)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    if not plain:
        lora.patch(model.modules())
    return model


def used(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    calls = []
    real = lora.lora_linear
    monkeypatch.setattr(lora, "lora_linear", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    with torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5]]))
    monkeypatch.undo()
    return len(calls)


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind != "gpt2"])
@pytest.mark.parametrize("fields", [{}, {"rslora": True}, {"bias": "all"}, {"targets": "q_proj,v_proj"}], ids=str)
def test_value_and_gradients_are_those_of_peft(
    kind: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if fields.get("bias") and kind not in ("qwen2",):
        pytest.skip("it has no biases")
    one, other = tuned(kind, plain=True, **fields), tuned(kind, **fields)
    assert used(other, monkeypatch) and not used(one, monkeypatch)
    for a, b in zip(one_step(one), one_step(other), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_type", [torch.float32, torch.bfloat16])
def test_under_autocast_and_in_bfloat16_it_is_as_near_to_the_truth(model_type: torch.dtype) -> None:
    truth = one_step(tuned(plain=True))
    found = []
    for plain in (True, False):
        model = tuned(plain=plain)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(model_type)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(one_step(model))
    usual, ours = (
        sum(float((x.float() - right).norm() / right.norm()) for right, x in zip(truth, side, strict=True)) / len(truth)
        for side in found
    )
    assert ours <= 1.25 * usual, "on average over loss, logits and every gradient"


def masked(x: Tensor, rate: float, seed: int) -> Tensor:
    made = x.clone()
    for part, mask in Dropped(rate, seed).blocks(x):
        made[part] *= mask
    return made


def frozen(out: int, width: int, dtype: torch.dtype = torch.float32, bias: bool = False) -> nn.Linear:
    return nn.Linear(width, out, bias=bias, dtype=dtype).requires_grad_(False)


def test_gradients_with_dropout_are_those_of_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "BLOCK", 30)  # four tokens of seven
    torch.manual_seed(0)
    x, a, b, bias = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 5, 7), (3, 7), (4, 3), (4,))
    )
    layer = frozen(4, 7, torch.float64)

    def value(x: Tensor, a: Tensor, b: Tensor, bias: Tensor, rate: float) -> Tensor:
        layer.bias = nn.Parameter(bias)
        return lora._LoraLinear.apply(x, layer, bias, a, b, 2.0, Dropped(rate, 9) if rate else None)  # type: ignore[no-untyped-call, no-any-return]

    for rate in (0.0, 0.4):
        assert torch.autograd.gradcheck(lambda *t, rate=rate: value(*t, rate), (x, a, b, bias))
    assert not torch.equal(value(x, a, b, bias, 0.4), value(x, a, b, bias, 0.0))


def test_dropout_drops_its_share_keeps_the_mean_and_follows_the_seed() -> None:
    x = torch.ones(2100, 1000)  # more than a block
    dropped = masked(x, 0.1, 5)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.1, abs=1e-3)
    assert (dropped == 0).float().mean(0).sub(0.1).abs().max() < 0.05 and (dropped == 0).float().mean(1).sub(
        0.1
    ).abs().max() < 0.06, "no token and no input is spared"
    assert torch.equal(dropped, masked(x, 0.1, 5)) and not torch.equal(dropped, masked(x, 0.1, 6))
    layer = frozen(1, 1000)
    layer.weight.zero_()
    made = lora_linear(x, layer, LowRank(torch.ones(1, 1000), torch.ones(1, 1), 1.0, Dropped(0.1, 7)))
    assert made.mean().item() == pytest.approx(1000, rel=2e-3)


def test_what_two_masks_drop_has_nothing_to_do_with_one_another() -> None:
    x = torch.ones(200, 500)
    masks = torch.stack([masked(x, 0.3, seed).flatten() for seed in range(40)])
    among = torch.corrcoef(masks) - torch.eye(40)
    assert among.abs().max() < 0.02, "five standard errors of two independent masks"
    places = torch.corrcoef(torch.stack([masked(x[:2], 0.3, seed).flatten()[:30] for seed in range(3000)]).t())
    assert (places - torch.eye(30)).abs().max() < 0.1


def test_dropout_in_a_model_trains_only_and_is_drawn_from_torchs_state() -> None:
    model = tuned(dropout=0.3)
    model.train()
    one, two, same = one_step(model, 0), one_step(model, 1), one_step(model, 0)
    assert not torch.equal(one[0], two[0]) and all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    model.eval()
    plain = tuned(plain=True, dropout=0.3).eval()
    for a, b in zip(one_step(plain), one_step(model), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)


def test_activation_checkpointing_draws_the_same_mask() -> None:
    one, other = tuned(dropout=0.3).train(), tuned(dropout=0.3).train()
    other.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    for a, b in zip(one_step(one), one_step(other), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-7)


def test_what_peft_does_with_its_layers_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tuned().eval()
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        on = model(input_ids=ids).logits
        with model.disable_adapter():
            assert not used(model, monkeypatch)
            off = model(input_ids=ids).logits
        torch.testing.assert_close(off, base("llama").eval()(input_ids=ids).logits)
        model.save_pretrained(tmp_path / "a")
        model.load_adapter(str(tmp_path / "a"), adapter_name="other")
        model.set_adapter("other")
        assert used(model, monkeypatch)
        torch.testing.assert_close(model(input_ids=ids).logits, on)
        model.base_model.set_adapter(["default", "other"])
        assert not used(model, monkeypatch), "two at once go PEFT's way"
        model.set_adapter("default")
        twin = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.data.zero_()
        torch.testing.assert_close(twin(input_ids=ids).logits, on)
        merged = twin.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, on, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{"dora": True}, {"targets": "all-linear"}], ids=str)
def test_what_is_more_than_lora_on_a_linear_layer_goes_pefts_way(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tuned("llama" if "dora" in fields else "gpt2", **fields)
    assert not used(model, monkeypatch)
    one_step(model)
