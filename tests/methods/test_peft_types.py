"""Every type of PEFT that has no method of its own here, held to the promises of the methods; a failure is listed.

`make methods-table` makes the table in docs/methods.md from what is found here.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from luthier.core.errors import CannotMerge, InputError
from luthier.methods.layers.loading import shapes_of
from luthier.methods.peft import BESIDE, REFUSED, UNMERGEABLE, config_classes, fields_of
from luthier.recipe.config import RunConfig
from tests.methods import test_promises as promises
from tests.methods import zoo
from tests.methods.zoo import ARCHITECTURES, DECODERS, attached, base, classifies, empty, ids, logits, method

TYPES: dict[str, dict[str, Any]] = {
    "adaption_prompt": {"adapter_len": 4},
    "beft": {},
    "c3a": {"block_size": 8},
    "deft": {"r": 4},
    "delora": {"r": 4, "delora_lambda": 4},
    "fourierft": {"n_frequency": 50, "scaling": 10.0},
    "glora": {"r": 4},
    "gralora": {"r": 4, "alpha": 8},
    "hira": {"r": 4},
    "hra": {"r": 4},
    "miss": {"r": 4},
    "peanut": {"r": 4},
    "psoft": {"r": 4},
    "pvera": {"r": 64},
    "randlora": {"r": 4, "randlora_alpha": 8},
    "road": {"group_size": 8},
    "shadow": {"r": 4, "shadow_dropout": 0.0},
    "shira": {"r": 2},
    "supertuning": {"sparsity": 0.9},
    "tinylora": {},
    "trainable_tokens": {"token_indices": list(range(5, 300))},
    "unilora": {},
    "vblora": {"vector_length": 8, "num_vectors": 16},
    "waveft": {"n_frequency": 50, "scaling": 10.0},
}
"""Settings that suit small models; boft is in the zoo."""

LINEAR_ONLY = ["beft", "c3a", "delora", "glora", "hra", "miss", "peanut", "psoft", "road", "shira", "supertuning"]
"""Types without a layer for GPT-2's Conv1D."""

NO_PLACE: dict[tuple[str, str], str] = {
    **{(name, "gpt2"): "Conv1D" for name in LINEAR_ONLY},
    **{
        ("adaption_prompt", kind): "Unsupported model type"
        for kind in ARCHITECTURES
        if kind not in ("llama", "mistral", "gpt2")
    },
    **{("shadow", kind): "does not fit this model" for kind in ("bert", "t5")},
    **{("trainable_tokens", kind): "does not work" for kind in ("bert", "t5")},
}
"""(type, architecture) -> the words it is refused with."""

FAILS = {
    ("pvera", "7"): "it draws noise at each pass, so a step that is cut into micro-batches is another step",
    ("shadow", "2"): "weights that only the loss of the shadow itself reads get no gradient",
    ("trainable_tokens", "h"): "it is refused with a head for labels, which PEFT leaves untrained",
}
"""(type, promise) -> why it is not kept."""

CHECKS: dict[str, Callable[..., None]] = {
    "2": promises.test_1_step_zero_is_the_base_and_2_only_the_method_trains,
    "3": promises.test_3_the_loss_falls_and_the_base_stays_to_the_bit,
    "4": promises.test_4_saved_and_loaded_is_the_same,
    "5": promises.test_5_merged_is_the_same_or_refused,
    "6": promises.test_6_switched_off_is_the_base,
    "7": promises.test_7_checkpointing_accumulation_and_bf16_change_only_rounding,
    "c": promises.test_4_a_causal_model_stays_causal,
    "p": promises.test_4_padding_on_either_side_changes_nothing,
    "k": promises.test_4_a_packed_row_is_its_parts,
    "g": promises.test_4_generation_with_a_cache_is_generation_without,
    "h": promises.test_a_decoder_classifies_with_its_head_and_padding_changes_nothing,
}


def table(found: dict[tuple[str, str], set[str]]) -> list[str]:
    """Lines of the table of docs/methods.md: for each type where it has a place, and the promises kept everywhere."""
    lines = ["| type | not on | kept | not kept |", "|---|---|---|---|"]
    for name in TYPES:
        kinds = [kind for kind in ARCHITECTURES if (name, kind) not in NO_PLACE]
        marks = {kind: found.get((f"peft ({name})", kind), set()) for kind in kinds}
        kept, lost = "", []
        for promise in ("1", *CHECKS):
            over = [kind for kind in kinds if promise not in "cpkgh" or kind in DECODERS]
            missing = [kind for kind in over if promise not in marks[kind]]
            if promise == "1" and name in BESIDE:
                lost.append(f"1: {BESIDE[name]}")
            elif (name, promise) in FAILS:
                lost.append(f"{promise}: {FAILS[name, promise]}")
            elif promise == "5" and missing and all("-" in marks[kind] for kind in missing):
                lost.append(f"5: {UNMERGEABLE.get(name, 'merges only where the layers have biases')}")
            elif missing:
                lost.append(f"{promise}: not tested on {', '.join(missing)}")
            else:
                kept += promise
        away = ", ".join(kind for kind in ARCHITECTURES if kind not in kinds)
        lines.append(f"| `{name}` | {away} | {kept} | {'; '.join(lost)} |")
    lines += ["", "Refused:", "", *(f"- `{name}` {why}" for name, why in REFUSED.items())]
    return lines


RATES = {"pvera": 0.1, "unilora": 0.1, "trainable_tokens": 0.1}


@pytest.fixture(autouse=True)
def specs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, settings in TYPES.items():
        monkeypatch.setitem(zoo.SPECS, f"peft ({name})", {"type": name, **settings})
        if name in RATES:
            monkeypatch.setitem(promises.RATES, f"peft ({name})", RATES[name])
    for name in ("deft", "hra"):
        monkeypatch.setitem(promises.STARTS, f"peft ({name})", 1e-5)
    monkeypatch.setattr(promises, "NOT_THE_BASE", (*promises.NOT_THE_BASE, *(f"peft ({name})" for name in BESIDE)))


def test_every_type_of_peft_is_tested_or_refused() -> None:
    assert config_classes().keys() == TYPES.keys() | REFUSED.keys() | {"boft"}
    for name, why in REFUSED.items():
        with pytest.raises(InputError, match=re.escape(f"method.type: {name} {why}")):
            RunConfig.load(None, ["method=peft", f"method.type={name}"])


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "kind"), [pytest.param(*cell, id="-".join(cell)) for cell in NO_PLACE])
def test_a_type_without_a_place_says_so_before_any_weights(name: str, kind: str) -> None:
    with pytest.raises(InputError, match=NO_PLACE[name, kind]):
        method(f"peft ({name})").check(empty(kind), classify=classifies(kind))


@pytest.mark.matrix
@pytest.mark.parametrize("promise", CHECKS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("name", TYPES)
def test_a_type_keeps_a_promise_or_is_listed(name: str, kind: str, promise: str, tmp_path: Path, kept: Any) -> None:
    full, check = f"peft ({name})", CHECKS[promise]
    if (name, kind) in NO_PLACE or (promise in "cpkgh" and kind not in DECODERS):
        pytest.skip("it is refused, or the promise is about decoders")
    if promise == "5" and (name in UNMERGEABLE or (name == "beft" and kind not in ("bert",))):
        x, (tuner, model) = ids(kind), attached(full, kind)
        zoo.shake(model)
        told = logits(model, x)
        assert "not merged" in tuner.unmergeable(base(kind)) and "not merged" in tuner.caveat(base(kind))
        with pytest.raises(CannotMerge, match=name):
            tuner.merge(model)
        assert torch.equal(logits(model, x), told)
        kept(full, kind, "-")
        return
    given: dict[str, Any] = {"name": full, "kind": kind, "kept": kept}
    if "tmp_path" in inspect.signature(check).parameters:
        given["tmp_path"] = tmp_path
    if promise == "2":
        assert ("before the first step" in method(full).caveat(base(kind))) == (name in BESIDE)
    if (name, promise) in FAILS:
        assert promise == "h" or name in method(full).caveat(base(kind)), "and the user is told"
        with pytest.raises((AssertionError, InputError)):
            check(**given)
        return
    check(**given)


@pytest.mark.parametrize("name", ["c3a", "fourierft"])
def test_the_fix_of_the_caveat_starts_from_the_base(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "init_weights=true" in method(f"peft ({name})").caveat(base("llama"))
    monkeypatch.setitem(zoo.SPECS, f"peft ({name})", {"type": name, **TYPES[name], "init_weights": True})
    tuner, model = attached(f"peft ({name})", "llama")
    assert torch.equal(logits(model, ids("llama")), logits(base("llama"), ids("llama")))
    assert not tuner.caveat(base("llama"))


def test_the_fields_are_those_of_peft_and_come_back_from_the_recipe(tmp_path: Path) -> None:
    given = ["method=peft", "method.type=BOFT", "method.boft_block_size=2", "method.target_modules=[q_proj]"]
    config = RunConfig.load(None, given)
    (tmp_path / "again.yaml").write_text(config.dump())
    again = RunConfig.load(tmp_path / "again.yaml")
    assert again.method == config.method
    assert config.method.spec() == {
        "name": "peft",
        "targets": ["q_proj"],
        "layers": [],
        "type": "boft",
        "boft_block_size": 2,
        "from_adapter": "",
    }
    made = config.method.attach(base("llama"), steps=3)
    assert made.peft_config["default"].boft_block_size == 2
    assert made.peft_config["default"].target_modules == {"q_proj"}
    assert {"boft_dropout", "boft_block_num"} < fields_of("boft").keys() and "target_modules" not in fields_of("boft")


def test_an_adapter_that_names_another_model_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "SHADOW", "shadow_model": "someone/model"}))
    save_file({"w": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match="shadow_model makes PEFT open another model"):
        shapes_of(tmp_path)
