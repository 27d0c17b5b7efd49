"""Several adapters on one base, and adapters in a process of their own: none leaks, none is lost, nothing is silent."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from luthier.core.errors import InputError
from luthier.methods.base import METHODS, Method
from tests.methods.zoo import (
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
    settings_of,
    shake,
)

pytestmark = pytest.mark.matrix

KINDS = ["llama", "qwen2", "bert"]

OTHER: dict[str, dict[str, Any]] = {
    "bitfit": {"terms": ("key", "value")},
    "prefix": {"length": 6, "hidden": 12},
    "p_tuning_v2": {"length": 6},
    "prompt": {"length": 6},
    "p_tuning": {"length": 6, "hidden": 8},
    "p_tuning (lstm)": {"length": 6, "hidden": 8},
    **{n: {"size": 4} for n in ("houlsby", "pfeiffer", "adapter (output)", "parallel_adapter", "scaled_parallel")},
    **{n: {"size": 4} for n in ("pfeiffer (drop)", "pfeiffer (robust drop)", "compacter", "compacter_pp")},
    **{n: {"rank": 2} for n in ("lora", "rslora", "dora", "lora_plus")},
    "pissa": {"rank": 2, "alpha": 2.0},
    "adalora": {"rank": 3, "target_rank": 1},
    "mam": {"length": 6, "size": 4},
    "mam (mlp)": {"length": 6, "size": 4},
    "unipelt": {"length": 6, "size": 4, "rank": 2},
    "oft": {"block": 4},
}
"""Settings of the second adapter, of another size than the first where the method has sizes (VeRA's must agree)."""

ALONE = {"lora (bias)": "trains the base's own biases"}
"""Saved adapters that bear no other beside them, with the words of the refusal."""

ALONE_LIVE = {
    **ALONE,
    "pissa": "took its start out of the base's weights",
    "adalora": "supports only 1 trainable adapter",
}
"""The same while training."""


def finished(name: str, kind: str, folder: Path, seed: int, **settings: Any) -> tuple[Method, Tensor]:
    """Save an adapter that was moved by `seed`: (method, logits of a model that holds it alone)."""
    tuner = METHODS.parse({"name": name.split(" ", maxsplit=1)[0], **settings_of(name, kind), **settings})
    torch.manual_seed(seed)
    model = tuner.attach(base(kind), steps=20, classify=classifies(kind)).eval()
    shake(model, seed=seed)
    tuner.save(model, folder)
    return tuner, logits(tuner.load(base(kind), folder).eval(), ids(kind))


Shelf = Callable[[str, str], tuple[Method, Path, Tensor]]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """A saved adapter of each kind, made when first asked for: (method, folder, logits)."""
    root, made = tmp_path_factory.mktemp("shelf"), {}

    def take(name: str, kind: str) -> tuple[Method, Path, Tensor]:
        if (name, kind) not in made:
            folder = root / kind / name
            tuner, told = finished(name, kind, folder, seed=20 + list(SPECS).index(name))
            made[name, kind] = (tuner, folder, told)
        return made[name, kind]

    return take


@pytest.mark.parametrize(("name", "kind"), cells(KINDS, peft_names()))
def test_s_two_saved_adapters_answer_each_as_if_alone(name: str, kind: str, tmp_path: Path, kept: Any) -> None:
    """Request by request: one, the base, the other, the first again; then only the other is left."""
    x = ids(kind)
    plain = logits(base(kind), x)
    tuner, one = finished(name, kind, tmp_path / "one", seed=9)
    _, two = finished(name, kind, tmp_path / "two", seed=10, **OTHER.get(name, {}))
    assert (one - two).abs().max() > 1e-3 and (one - plain).abs().max() > 1e-3
    model: Any = tuner.load(base(kind), tmp_path / "one").eval()
    if name in ALONE:
        with pytest.raises(InputError, match=ALONE[name]):
            model.load_adapter(str(tmp_path / "two"), "second")
        assert torch.equal(logits(model, x), one)
        return
    model.load_adapter(str(tmp_path / "two"), "second")
    assert torch.equal(logits(model, x), one), "loading another one changes nothing"
    for _ in range(2):
        model.set_adapter("second")
        assert torch.equal(logits(model, x), two)
        switch = tuner.disabled(model)
        assert switch is not None
        with switch:
            assert torch.equal(logits(model, x), plain)
        assert torch.equal(logits(model, x), two)
        model.set_adapter("default")
        assert torch.equal(logits(model, x), one)
    model.set_adapter("second")
    model.delete_adapter("default")
    assert torch.equal(logits(model, x), two)
    assert not [n for n, _ in model.named_parameters() if ".default." in n or n.endswith(".default")]
    kept(name, kind, "s")


@pytest.mark.parametrize("name", [name for name in peft_names() if method(name).mergeable and name not in ALONE])
def test_s_of_two_adapters_only_the_one_in_use_merges(name: str, tmp_path: Path) -> None:
    tuner, _ = finished(name, "bert", tmp_path / "one", seed=9)
    _, two = finished(name, "bert", tmp_path / "two", seed=10, **OTHER.get(name, {}))
    model: Any = tuner.load(base("bert"), tmp_path / "one").eval()
    model.load_adapter(str(tmp_path / "two"), "second")
    model.set_adapter("second")
    assert (logits(tuner.merge(model), ids("bert")) - two).abs().max() < 2e-5


def names_of(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """The adapter's weights, under the names they would have as the only one."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {n.replace(f".{adapter}", ".default"): p for n, p in own.items() if f".{adapter}" in n}


@pytest.mark.parametrize(("name", "kind"), cells(["qwen2", "bert"], peft_names()))
def test_s_a_second_adapter_trains_beside_a_live_one(name: str, kind: str) -> None:
    """Added to a model in training; a step of the second moves no bit of the first."""
    x = ids(kind)
    model: Any = attached(name, kind)[1]
    shake(model, seed=9)
    one = logits(model, x)
    config = copy.deepcopy(model.peft_config["default"])
    if name in ALONE_LIVE:
        with pytest.raises((InputError, ValueError), match=ALONE_LIVE[name]):
            model.add_adapter("second", config)
        assert torch.equal(logits(model, x), one)
        return
    model.add_adapter("second", config)
    model.eval()
    assert torch.equal(logits(model, x), one)
    model.set_adapter("second")
    first = {n: p.detach().clone() for n, p in names_of(model, "default").items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model, x).backward()
        optimizer.step()
    assert [n for n, p in names_of(model, "default").items() if not torch.equal(p, first[n])] == []
    two = logits(model, x)
    assert (two - one).abs().max() > 1e-3
    model.set_adapter("default")
    assert torch.equal(logits(model, x), one)

    _, alone = attached(name, kind, seed=5)
    own = names_of(alone, "default")
    with torch.no_grad():
        for n, value in names_of(model, "second").items():
            own.pop(n).copy_(value)
    assert not [n for n in own if ".vera_" not in n], "VeRA's random matrices serve both"
    assert torch.equal(logits(alone, x), two)


def family(name: str) -> str:
    """PEFT's name of the method's type: a model holds adapters of one type only."""
    return str(method(name).peft_config(empty("llama"), 5).peft_type)  # type: ignore[attr-defined]


FAMILIES: dict[str, list[str]] = {}
for _name in peft_names():
    FAMILIES.setdefault(family(_name), []).append(_name)
AROUND = ("pfeiffer", "pfeiffer (drop)", "pfeiffer (robust drop)", "parallel_adapter", "scaled_parallel")
INSIDE = ("houlsby", "adapter (output)", "compacter", "compacter_pp")
"""Adapters around the feed-forward block, and those at its last layer."""


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("first", [n for names in FAMILIES.values() for n in names if len(names) > 1])
def test_s_kindred_methods_share_a_base_or_say_why_not(first: str, kind: str, shelf: Shelf) -> None:
    """All pairs of one type: lora with dora, prefix with p_tuning_v2, houlsby with pfeiffer, in either order."""
    x = ids(kind)
    tuner, folder, one = shelf(first, kind)
    for second in FAMILIES[family(first)]:
        if second == first:
            continue
        _, other, two = shelf(second, kind)
        model: Any = tuner.load(base(kind), folder).eval()
        refused = "already holds" if first in AROUND and second in INSIDE else ""
        refused = "cannot stand beside the others" if {first, second} & {*ALONE} else refused
        if refused:
            with pytest.raises((InputError, ValueError), match=refused):
                model.load_adapter(str(other), "second")
            assert torch.equal(logits(model, x), one), second
            continue
        model.load_adapter(str(other), "second")
        for name, told in (("second", two), ("default", one), ("second", two)):
            model.set_adapter(name)
            assert torch.equal(logits(model, x), told), second


@pytest.mark.parametrize("first", FAMILIES)
def test_s_methods_of_two_types_do_not_share_a_model_and_it_says_so(first: str, shelf: Shelf) -> None:
    x = ids("llama")
    tuner, folder, one = shelf(FAMILIES[first][0], "llama")
    model: Any = tuner.load(base("llama"), folder).eval()
    for second in FAMILIES:
        if second == first:
            continue
        _, other, _ = shelf(FAMILIES[second][0], "llama")
        with pytest.raises(ValueError, match=f"different peft types. Found {first} and {second}"):
            model.load_adapter(str(other), "second")
        assert torch.equal(logits(model, x), one)


def test_s_one_base_carries_one_model_of_adapters(shelf: Shelf) -> None:
    """PEFT would wrap a wrapped base again and only warn; both would answer together. We refuse."""
    tuner, folder, one = shelf("lora", "llama")
    other, other_folder, two = shelf("houlsby", "llama")
    x, shared = ids("llama"), base("llama")
    model = tuner.load(shared, folder).eval()
    for again in (
        lambda: other.load(shared, other_folder),
        lambda: other.attach(shared, steps=5),
        lambda: other.load(model, other_folder),
        lambda: tuner.load(model, folder),
    ):
        with pytest.raises(InputError, match="carries an adapter already, and the two would answer together"):
            again()
    assert torch.equal(logits(model, x), one)
    with pytest.warns(UserWarning, match="multiple adapters"):
        mixed = PeftModel.from_pretrained(shared, str(other_folder)).eval()
    assert (logits(mixed, x) - two).abs().max() > 1e-3, "why we refuse; PEFT alone mixes them"


@pytest.mark.parametrize("name", ["bitfit", "houlsby", "prefix", "mam", "unipelt"])
def test_s_pefts_mixed_model_does_not_take_ours(name: str) -> None:
    model = base("llama")
    with pytest.raises(ValueError, match="not compatible with the `PeftMixedModel`"):
        get_peft_model(model, method(name).peft_config(model, 5), mixed=True)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_s_methods_of_all_types_on_copies_that_share_the_weights(kind: str, shelf: Shelf) -> None:
    """The way to many methods on one base: copies of its modules around the same tensors, so memory holds it once.

    Not with lora's bias, which is kept in the base's own biases.
    """
    x, shared = ids(kind), base(kind)
    plain, own = logits(shared, x), {p.data_ptr() for p in shared.parameters()}
    models, told = {}, {}
    for name in peft_names():
        if name in ALONE:
            continue
        tuner, folder, told[name] = shelf(name, kind)
        twin = copy.deepcopy(shared, {id(p): p for p in shared.parameters()})
        assert {p.data_ptr() for p in twin.parameters()} == own
        models[name] = tuner.load(twin, folder).eval()
        assert own <= {p.data_ptr() for p in models[name].parameters()}
    for _ in range(2):
        for name, model in models.items():
            assert torch.equal(logits(model, x), told[name]), name
    assert torch.equal(logits(shared, x), plain)


PEFTS_OWN = (
    "prompt",
    "p_tuning",
    "p_tuning (lstm)",
    "lora",
    "lora (bias)",
    "rslora",
    "dora",
    "pissa",
    "lora_plus",
    "adalora",
    "ia3",
    "vera",
    "oft",
    "loha",
    "lokr",
    "layernorm",
    "peft (boft)",
)
"""Methods whose files PEFT alone can load."""

NOT_BY_TRANSFORMERS = {
    **dict.fromkeys(("prompt", "p_tuning", "p_tuning (lstm)"), "does not support prompt learning"),
    "vera": "shared state",
    "adalora": "raising an error",  # ranks that were cut do not fit the layers it makes
}
"""What transformers' own load_adapter cannot do, with the words it says so."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases and adapters of every method on the disk, with the logits that they gave in training."""
    import transformers as t

    root = tmp_path_factory.mktemp("saved")
    for kind in ("qwen2", "bert"):
        base(kind).save_pretrained(root / kind / "base")
        auto = t.AutoModelForSequenceClassification if classifies(kind) else t.AutoModelForCausalLM
        x, told = ids(kind), {}
        for name in SPECS:
            tuner, model = attached(name, kind, model=auto.from_pretrained(root / kind / "base"))
            shake(model)
            if name == "adalora":
                _cut_ranks(tuner, model, x)
            told[name] = logits(model, x).contiguous()
            tuner.save(model, root / kind / name)
        save_file(told, root / kind / "told.safetensors")
        save_file({"ids": x}, root / kind / "ids.safetensors")
    return root


def _cut_ranks(tuner: Method, model: Any, x: Tensor) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for index in range(1, 21):
        optimizer.zero_grad()
        loss(model, x).backward()
        optimizer.step()
        tuner.after_step(model, index)


@pytest.fixture(scope="module")
def reloaded(saved: Path) -> dict[str, Any]:
    """What `reload.py` prints: the way to import -> what it found."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("reload.py")), str(saved)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return {way: found for line in lines for way, found in json.loads(line).items()}


CLOSE = 2e-6
"""PiSSA and a cut AdaLoRA are kept in another form than trained, equal but for rounding; most are equal to the bit."""


def test_n_a_new_process_gives_the_same_logits(reloaded: dict[str, Any], kept: Any) -> None:
    """After `import luthier`: with PEFT, with AutoPeftModel, and with transformers' load_adapter where it can."""
    found = reloaded["luthier"]
    assert found.keys() == {f"{name}-{kind}" for name in SPECS for kind in ("qwen2", "bert")}
    for key, ways in found.items():
        name, _, kind = key.rpartition("-")
        if name in ("full", "freeze"):
            assert ways == {"whole": pytest.approx(0, abs=CLOSE)}, key
        else:
            assert ways["peft"] == pytest.approx(0, abs=CLOSE), key
            assert ways["auto"] == pytest.approx(0, abs=CLOSE), key
            if name in NOT_BY_TRANSFORMERS:
                assert NOT_BY_TRANSFORMERS[name] in ways["transformers"], key
            elif name == "dora":  # transformers 5.23 leaves DoRA's magnitudes out, and says so in a report
                assert ways["transformers"] > 1e-3 and "lora_magnitude_vector" in ways["missing"][0], key
            else:
                assert ways["transformers"] == pytest.approx(0, abs=CLOSE) and ways["missing"] == [], key
        kept(name, kind, "n")


def test_n_peft_alone_loads_what_is_its_own_and_refuses_ours(reloaded: dict[str, Any]) -> None:
    """Without luthier; imported after PEFT, it makes PEFT know the rest."""
    for key, ways in reloaded["peft"].items():
        name = key.rpartition("-")[0]
        if name in ("full", "freeze"):
            continue
        if name in PEFTS_OWN:
            assert ways["peft"] == pytest.approx(0, abs=CLOSE), key
        else:
            assert "KeyError" in ways["peft"], key
        assert ways["peft and then luthier"] == pytest.approx(0, abs=CLOSE), key


def test_peft_knows_our_methods_also_where_others_only_looked_for_it(reloaded: dict[str, Any]) -> None:
    assert {"BITFIT", "MAM"} <= {*reloaded["looked for"]}


@pytest.mark.parametrize(("name", "kind"), cells(["llama", "gpt2", "bert", "t5"], peft_names()))
def test_unload_gives_the_untouched_base_back(name: str, kind: str) -> None:
    """Bit for bit, with its own head; of PiSSA, which splits the base's weights, to rounding."""
    plain = base(kind)
    _, model = attached(name, kind)
    if not hasattr(model.base_model, "unload"):
        assert name.split(" ", maxsplit=1)[0] in ("prompt", "p_tuning"), "PEFT has no unload for prompts"
        return
    shake(model)
    back: Any = model.unload()  # type: ignore[operator]
    assert {n: type(m) for n, m in back.named_modules()} == {n: type(m) for n, m in plain.named_modules()}
    assert not [n for n, m in back.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    own, found = plain.state_dict(), back.state_dict()
    assert list(own) == list(found)
    for key, value in own.items():
        assert torch.allclose(found[key], value, atol=1e-6) if name == "pissa" else torch.equal(found[key], value), key
