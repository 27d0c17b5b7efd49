"""Our bottlenecks, prefixes, MAM and UniPELT against AdapterHub's, with AdapterHub's weights in both.

The files are recorded by `tools/adapterhub/record.py` (adapters 1.3.0 on transformers 4.57.6); AdapterHub
itself is not needed here. Measured: at most 1.5e-6 between the two, where the logits go up to 3.2 and the
adapters move them by 0.8 to 4.8 (decoders with eager attention: no difference at all). The base models
alone, without any adapter, differ by up to 1.3e-6.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

FILES = Path(__file__).parent / "fixtures" / "adapterhub"
BOUND = 5e-6
LENGTH, ENCODER = 5, 12
BASES = ["bert", "llama", "llama_gqa", "qwen2"]
ADAPTER = "default"


def bottleneck(**settings: Any) -> Any:
    from luthier.methods.layers.bottleneck import BottleneckConfig

    return BottleneckConfig(**settings)


def prefix(**settings: Any) -> Any:
    from luthier.methods.layers.prefix import PrefixKVConfig

    return PrefixKVConfig(length=LENGTH, **settings)


def mam() -> Any:
    from luthier.methods.layers.composite import MamConfig

    return MamConfig(length=LENGTH, reparam="mlp", encoder_size=ENCODER, size=16, scale=4.0)


def unipelt() -> Any:
    """Mean gates on decoders too, as AdapterHub has them; the method UniPELT itself refuses them there."""
    from luthier.methods.layers.composite import UniPeltConfig

    return UniPeltConfig(length=LENGTH, reparam="mlp", encoder_size=ENCODER, size=4, rank=4, gate="mean")


OURS: dict[str, Callable[[], Any]] = {
    "houlsby": lambda: bottleneck(place="houlsby", size=2, activation="silu"),  # AdapterHub's swish
    "houlsby_relu": lambda: bottleneck(place="houlsby", size=8),
    "pfeiffer": lambda: bottleneck(place="pfeiffer", size=2),
    "output": lambda: bottleneck(place="output", size=4, activation="gelu"),
    "parallel": lambda: bottleneck(place="parallel", size=16, scale=4.0),
    "parallel_learned": lambda: bottleneck(place="parallel", size=8, learned_scale=True),
    "parallel_gated": lambda: bottleneck(place="parallel", size=8, scale=4.0, gate="mean"),
    "prefix": lambda: prefix(reparam="mlp", encoder_size=ENCODER),
    "prefix_flat": prefix,
    "mam": mam,
    "unipelt": unipelt,
}
"""The same sizes as in the recorder: AdapterHub's reduction factor divides the hidden size of 32."""


@cache
def about(base: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / f"{base}.json").read_text(encoding="utf-8"))
    return found


@cache
def tensors(base: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(FILES / f"{base}.safetensors")


def under(base: str, start: str) -> dict[str, Tensor]:
    """The recorded tensors whose names start so, by the rest of the name."""
    return {name.removeprefix(start): value for name, value in tensors(base).items() if name.startswith(start)}


CELLS = [pytest.param(base, method, id=f"{base}-{method}") for base in BASES for method in about(base)["methods"]]
ATTENTIONS = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def fresh(base: str, attention: str) -> Any:
    """The recorded base in our transformers. Its parameters have the same names in both versions: all are set."""
    import transformers as t

    settings = dict(about(base)["base"])
    config = t.AutoConfig.for_model(settings.pop("model_type"), **settings)
    auto = t.AutoModelForMaskedLM if config.model_type == "bert" else t.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation=attention).eval()
    assert model.config._attn_implementation == attention
    own, recorded = dict(model.named_parameters()), under(base, "base/")
    assert set(own) == set(recorded)
    set_parameters(own, recorded)
    return model


def set_parameters(own: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            assert own[name].shape == value.shape, name
            own[name].copy_(value)


AFTER = {
    ".attention.output": ".attention.output.dropout",
    ".output": ".output.dropout",
    ".attention_adapters": ".self_attn.o_proj",
    ".output_adapters": ".mlp.down_proj",
}
"""Where AdapterHub's bottleneck stands -> where ours does, behind the output of a sub-layer."""
AROUND = {".output": ".output", ".output_adapters": ".mlp"}
"""The same for bottlenecks that see more than the output: pfeiffer and parallel."""
PARTS = {"adapter_down.0": "down", "adapter_up": "up", "gate": "gate", "scaling": "scale"}
LORA_PARTS = {"lora_A": "A", "lora_B": "B", "gate": "lgate"}
ENCODER_PARTS = {"wte": "emb", "control_trans.0": "in"}


def translated(base: str, method: str, namespace: str) -> dict[str, Tensor]:
    """AdapterHub's weights under our names. Raises where a weight is not understood or two have the same place."""
    layers, hub_adapter = about(base)["base"]["num_hidden_layers"], about(base)["adapter"]
    found: dict[str, Tensor] = {}

    def put(place: str, part: str, kind: str, value: Tensor) -> None:
        name = f"base_model.model.{place}.{namespace}{part}.{ADAPTER}{kind and '.' + kind}"
        assert name not in found, name
        found[name] = value

    for name, value in under(base, f"{method}/weights/").items():
        place, middle, rest = re.fullmatch(
            rf"(.+?)\.(adapters|loras|prefix_tuning\.prefix_gates|prefix_tuning\.pool\.prefix_tunings)\.{hub_adapter}\.(.+)",
            name,
        ).groups()  # type: ignore[union-attr]
        part, _, kind = rest.rpartition(".") if rest.endswith((".weight", ".bias")) else (rest, "", "")
        if middle == "adapters":
            layer, where = re.fullmatch(r"(.+\.\d+)(\..+)", place).groups()  # type: ignore[union-attr]
            sites = AFTER if method.startswith("houlsby") or method == "output" else AROUND
            put(layer + sites[where], PARTS[part], kind, value)
        elif middle == "loras":
            put(place, LORA_PARTS[part], kind or "weight", value)
        elif middle.endswith("prefix_gates"):
            put(f"{place}.luthier_prefix", "pgate", rest, value)
        elif (part := part.removeprefix("self_prefix.")) in ENCODER_PARTS:
            put("luthier_prefix_encoder", ENCODER_PARTS[part], kind, value)
        else:  # of all layers in one, listed under the first: [layer, key or value, head, head size]
            last = part == "control_trans.2"
            assert last or part == "control_trans", name
            flat = value.chunk(layers) if last else value.view(LENGTH, layers, -1).unbind(1)
            for i, slice_of_layer in enumerate(flat):
                child = re.sub(r"\.0\.", f".{i}.", place) + ".luthier_prefix"
                put(child, "out" if last else "kv", kind, slice_of_layer)
    return found


def tuned(base: str, method: str, attention: str) -> Any:
    """Our tuner on the base with AdapterHub's weights: all of them are used, and all of ours are set."""
    from peft import get_peft_model

    model: Any = get_peft_model(fresh(base, attention), OURS[method]()).eval()
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = translated(base, method, model.base_model.prefix)
    assert set(weights) == set(own)
    assert sum(value.numel() for value in weights.values()) == sum(
        value.numel() for value in under(base, f"{method}/weights/").values()
    )
    with torch.no_grad():  # what is not copied would show
        for parameter in own.values():
            parameter.fill_(torch.nan)
    set_parameters(own, weights)
    return model


def difference(model: Any, base: str, recorded: str) -> float:
    """Largest difference to recorded logits at real tokens; what stands at padding is nobody's result."""
    stored = tensors(base)
    with torch.no_grad():
        logits = model(input_ids=stored["input_ids"], attention_mask=stored["attention_mask"]).logits
    real = stored["attention_mask"].bool()
    assert not bool(real.all()), "padding must take part"
    return float((logits[real] - stored[recorded][real]).abs().max())


@ATTENTIONS
@pytest.mark.parametrize("base", BASES)
def test_the_base_alone_computes_what_was_recorded(base: str, attention: str) -> None:
    assert difference(fresh(base, attention), base, "logits") < BOUND


@ATTENTIONS
@pytest.mark.parametrize(("base", "method"), CELLS)
def test_our_tuner_computes_what_adapterhub_computes(base: str, method: str, attention: str) -> None:
    model = tuned(base, method, attention)
    assert difference(model, base, f"{method}/logits") < BOUND
    assert difference(model, base, "logits") > 0.1, "the adapter does nothing: equal logits would prove nothing"


@pytest.mark.parametrize(("base", "method"), CELLS)
def test_our_tuner_has_as_many_parameters_as_adapterhub_counts(base: str, method: str) -> None:
    model = tuned(base, method, "sdpa")
    assert model.get_nb_trainable_parameters()[0] == about(base)["methods"][method]["parameters"]


@pytest.mark.parametrize(("base", "method"), CELLS)
def test_a_wrong_weight_is_noticed_whichever_it_is(base: str, method: str) -> None:
    model = tuned(base, method, "sdpa")
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        right = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn(right.shape, generator=generator) * 0.2)
            assert difference(model, base, f"{method}/logits") > 2 * BOUND, name
            parameter.copy_(right)
    assert difference(model, base, f"{method}/logits") < BOUND


def test_every_method_and_base_is_recorded_and_compared() -> None:
    assert {base.stem for base in FILES.glob("*.json")} == {base.stem for base in FILES.glob("*.safetensors")}
    assert {base.stem for base in FILES.glob("*.json")} == set(BASES)
    for base in BASES[:3]:
        assert set(about(base)["methods"]) == set(OURS)
