"""The promises of every method, on every architecture: identity, exactness, keeping, switching, merging."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import CannotMerge, InputError
from luthier.models.load import parameter_counts
from tests.methods.zoo import (
    DECODERS,
    NOT_THE_BASE,
    REFUSALS,
    SPECS,
    attached,
    base,
    cells,
    classifies,
    empty,
    ids,
    logits,
    loss,
    method,
    peft_names,
    shake,
)

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize(("name", "kind"), [pytest.param(*cell, id="-".join(cell)) for cell in REFUSALS])
def test_a_refusal_says_why_before_any_weights(name: str, kind: str, kept: Any) -> None:
    with pytest.raises(InputError, match=REFUSALS[name, kind]):
        method(name, kind).check(empty(kind), classify=classifies(kind))
    kept(name, kind, "R")


@pytest.mark.parametrize(("name", "kind"), cells())
def test_1_step_zero_is_the_base_and_2_only_the_method_trains(name: str, kind: str, kept: Any) -> None:
    """1: equal logits at the start, or the paper says otherwise. 2: the base is frozen, the head trains."""
    method(name, kind).check(empty(kind), classify=classifies(kind))
    plain, x = base(kind), ids(kind)
    tuner, model = attached(name, kind)
    difference = (logits(model, x) - logits(plain, x)).abs().max()
    if {tuner.name, name} & {*NOT_THE_BASE}:
        assert difference > 1e-6, "virtual tokens take part from the first step"
    else:
        assert difference < STARTS.get(name, 1e-7)
    kept(name, kind, "1")

    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable
    if tuner.saves == "adapter":
        own = {n for n, _ in plain.named_parameters()}
        touched = {n for n in trainable if n.removeprefix("base_model.").removeprefix("model.") in own}
        if name == "lora (bias)":
            touched = {n for n in touched if not n.endswith(".bias")}
        assert not touched, "no weight of the base trains"
        heads = {n for n in trainable if "modules_to_save" in n}
        assert bool(heads) == classifies(kind), "the head trains, and is kept with the adapter"
    model.train()
    loss(model, ids(kind)).backward()
    still = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert not still, "every trainable weight gets a gradient"
    assert not [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    kept(name, kind, "2")


def fingerprint(model: Any, names: set[str]) -> dict[str, str]:
    """Hash of each frozen weight."""
    return {
        n: hashlib.sha256(p.detach().numpy().tobytes()).hexdigest() for n, p in model.named_parameters() if n in names
    }


ROUNDED = {"pissa": 2e-6, "p_tuning (lstm)": 1e-6}
"""What is kept in another form than it was trained in, equal but for rounding: a LoRA of twice the rank, a prompt."""

STARTS = {"pissa": 1e-5, "compacter": 1e-6, "compacter_pp": 1e-6}
"""Bound on the logits at step 0 against the base's, where the start is computed and rounds."""

RATES = {"ia3": 0.1, "full": 5e-3, "freeze": 1e-2, "prompt": 0.1, "p_tuning": 0.05, "p_tuning (lstm)": 0.05}


@pytest.mark.parametrize(("name", "kind"), cells())
def test_3_the_loss_falls_and_the_base_stays_to_the_bit(name: str, kind: str, kept: Any) -> None:
    tuner, model = attached(name, kind)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    before, x = fingerprint(model, frozen), ids(kind, rows=4)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATES.get(name, 2e-2), weight_decay=0.0)
    model.train()
    course = []
    for index in range(1, 21):
        step = loss(model, x)
        course.append(float(step))
        extra = tuner.penalty(model)
        (step if extra is None else step + extra).backward()
        optimizer.step()
        tuner.after_step(model, index)
        optimizer.zero_grad()
    assert course[-1] < course[0] * 0.995, course
    moving = {n for n in frozen if "ranknum" in n}  # AdaLoRA counts its ranks in a parameter
    after = fingerprint(model, frozen)
    assert {n for n in frozen - moving if after[n] != before[n]} == set()
    kept(name, kind, "3")


@pytest.mark.parametrize(("name", "kind"), cells())
def test_4_saved_and_loaded_is_the_same(name: str, kind: str, tmp_path: Path, kept: Any) -> None:
    """To use (`load`) and to go on (`restore`), into models whose own weights are poisoned."""
    x = ids(kind)
    tuner, model = attached(name, kind)
    shake(model)
    told = logits(model, x)
    assert (told - logits(base(kind), x)).abs().max() > 1e-3
    tuner.save(model, tmp_path / "w", training=True)
    assert not [p for p in (tmp_path / "w").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
    assert torch.equal(logits(model, x), told), "saving changes nothing"
    bound = ROUNDED.get(name, 0.0)
    assert (logits(tuner.load(base(kind), tmp_path / "w").eval(), x) - told).abs().max() <= bound
    _, again = attached(name, kind, seed=77)
    for parameter in again.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(7.0)
    tuner.restore(again, tmp_path / "w")
    assert torch.equal(logits(again, x), told)
    kept(name, kind, "4")


@pytest.mark.parametrize(("name", "kind"), cells())
def test_5_merged_is_the_same_or_refused(name: str, kind: str, kept: Any) -> None:
    """fp32 within 2e-5 of logits of order one; afterwards the model is a plain one of the same size."""
    x = ids(kind)
    tuner, model = attached(name, kind)
    shake(model)
    told = logits(model, x)
    if not tuner.mergeable:
        with pytest.raises(CannotMerge, match=tuner.name):
            tuner.merge(model)
        assert torch.equal(logits(model, x), told)
        kept(name, kind, "-")
        return
    merged = tuner.merge(model)
    assert (logits(merged, x) - told).abs().max() < 2e-5 * max(1.0, float(told.abs().max()))
    plain = {n: tuple(p.shape) for n, p in base(kind).named_parameters()}
    now = {n: tuple(p.shape) for n, p in merged.named_parameters()}
    grown = {n for n in now if n not in plain}
    assert all(n.endswith(".bias") for n in grown) and (not grown or tuner.name == "bitfit")
    assert {n: now[n] for n in plain} == plain and type(merged).__name__ == type(base(kind)).__name__
    kept(name, kind, "5")


@pytest.mark.parametrize(("name", "kind"), cells(names=peft_names()))
def test_6_switched_off_is_the_base(name: str, kind: str, kept: Any) -> None:
    x = ids(kind)
    tuner, model = attached(name, kind)
    shake(model)
    told, switch = logits(model, x), tuner.disabled(model)
    if name == "lora (bias)":
        assert switch is None, "biases that train in place cannot be switched off, and it says so"
        return
    assert switch is not None
    with switch:
        off = logits(model, x)
    assert (off - logits(base(kind), x)).abs().max() <= (1e-5 if name == "pissa" else 1e-7)
    assert torch.equal(logits(model, x), told), "and on again"
    kept(name, kind, "6")


@pytest.mark.parametrize(("name", "kind"), cells(DECODERS))
def test_4_a_causal_model_stays_causal(name: str, kind: str, kept: Any) -> None:
    _, model = attached(name, kind)
    shake(model, 0.3)
    x = ids(kind, rows=1, length=9)
    other = x.clone()
    other[0, 5:] = torch.tensor([17, 18, 19, 20])
    first, second = logits(model, x), logits(model, other)
    assert (first[:, :5] - second[:, :5]).abs().max() < 2e-5
    assert (first[:, 5:] - second[:, 5:]).abs().max() > 1e-3
    kept(name, kind, "c")


def padded(x: torch.Tensor, side: str, amount: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    pad, one = x.new_full((len(x), amount), 1), torch.ones_like(x)
    parts, masks = ([pad, x], [pad * 0, one]) if side == "left" else ([x, pad], [one, pad * 0])
    return torch.cat(parts, 1), torch.cat(masks, 1)


@pytest.mark.parametrize(("name", "kind"), cells(DECODERS))
def test_4_padding_on_either_side_changes_nothing(name: str, kind: str, kept: Any) -> None:
    _, model = attached(name, kind)
    shake(model, 0.1)
    x = ids(kind, length=6)
    told = logits(model, x)
    for side in ("left", "right"):
        wide, mask = padded(x, side)
        place = {} if side == "right" or method(name).positions else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        found = logits(model, wide, attention_mask=mask, **place)
        real = found[:, 3:] if side == "left" else found[:, :6]
        assert (real - told).abs().max() < 1e-4, side
    kept(name, kind, "p")


@pytest.mark.parametrize(("name", "kind"), cells(DECODERS))
def test_4_a_packed_row_is_its_parts(name: str, kind: str, kept: Any) -> None:
    """Two rows in one sequence, told apart by their positions; prompts refuse, for they stand before the first only."""
    tuner, model = attached(name, kind)
    assert tuner.packs == (tuner.name not in ("prompt", "p_tuning"))
    if not tuner.packs:
        return
    shake(model, 0.1)
    x = ids(kind, length=5)
    apart = logits(model, x)
    positions = torch.arange(5).repeat(2)[None]
    together = logits(model, x.reshape(1, -1), position_ids=positions, use_cache=False)
    assert (together.view(2, 5, -1) - apart).abs().max() < 1e-4
    kept(name, kind, "k")


@pytest.mark.parametrize(("name", "kind"), cells(DECODERS))
def test_4_generation_with_a_cache_is_generation_without(name: str, kind: str, kept: Any) -> None:
    _, model = attached(name, kind)
    shake(model, 0.1)
    x = ids(kind, length=5)
    common = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    with torch.no_grad():
        cached = model.generate(input_ids=x, attention_mask=torch.ones_like(x), use_cache=True, **common)  # type: ignore[operator]
        wide, mask = padded(x, "left")
        left = model.generate(input_ids=wide, attention_mask=mask, use_cache=True, **common)[:, -6:]  # type: ignore[operator]
    greedy = x
    for _ in range(6):
        greedy = torch.cat([greedy, logits(model, greedy)[:, -1:].argmax(-1)], 1)
    assert torch.equal(cached[:, -6:], greedy[:, -6:]), "cached = computed again each time"
    assert torch.equal(left, greedy[:, -6:]), "a left-padded batch answers as single rows do"
    kept(name, kind, "g")


@pytest.mark.parametrize(("name", "kind"), cells())
def test_7_checkpointing_accumulation_and_bf16_change_only_rounding(name: str, kind: str, kept: Any) -> None:
    x = ids(kind, rows=4)

    def gradients(*, checkpointing: bool = False, parts: int = 1, bf16: bool = False) -> dict[str, torch.Tensor]:
        _, model = attached(name, kind)
        shake(model, 0.02 if name == "rslora" else 0.05)  # its factor is 2.8 times LoRA's: as large an update
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            for part in x.chunk(parts):
                (loss(model, part) / parts).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    told = gradients()
    for found, bound in (
        (gradients(checkpointing=True), 1e-6),
        (gradients(parts=2), 1e-4),
        (gradients(bf16=True), 0.25),
    ):
        assert found.keys() == told.keys()
        whole = torch.cat([g.flatten() for g in told.values()])
        other = torch.cat([found[n].flatten() for n in told])
        assert (whole - other).norm() <= bound * whole.norm() + 1e-9
    kept(name, kind, "7")


@pytest.mark.parametrize(("name", "kind"), cells(DECODERS))
def test_a_decoder_classifies_with_its_head_and_padding_changes_nothing(
    name: str, kind: str, tmp_path: Path, kept: Any
) -> None:
    x = ids(kind, rows=3, length=6)
    tuner, model = attached(name, kind, classify=True)
    shake(model, 0.1)
    told = logits(model, x, attention_mask=torch.ones_like(x))
    wide, mask = padded(x, "right")
    assert (logits(model, wide, attention_mask=mask) - told).abs().max() < 1e-4
    tuner.save(model, tmp_path / "w")
    fresh = base(kind, classify=True)
    fresh.config.problem_type = "regression"  # such a head answers in the same way
    again = tuner.load(fresh, tmp_path / "w").eval()
    bound = ROUNDED.get(name, 0.0)
    assert (logits(again, x, attention_mask=torch.ones_like(x)) - told).abs().max() <= bound
    assert (logits(again, wide, attention_mask=mask) - told).abs().max() < bound + 1e-4
    kept(name, kind, "h")


@pytest.mark.parametrize("kind", ["qwen2", "bert"])
@pytest.mark.parametrize("name", SPECS)
def test_the_share_of_trainable_parameters_counts_each_once(name: str, kind: str) -> None:
    if (name, kind) in REFUSALS:
        pytest.skip(REFUSALS[name, kind])
    _, model = attached(name, kind)
    trainable, total = parameter_counts(model)
    unique = {id(p): p for p in model.parameters()}.values()
    assert total == sum(p.numel() for p in unique) and trainable == sum(p.numel() for p in unique if p.requires_grad)
