"""Every tuning method against something that is not ours: plain PEFT, plain transformers, or the paper's formula."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from luthier.methods.base import METHODS
from luthier.methods.layers.bottleneck import BottleneckConfig
from luthier.methods.layers.prefix import PrefixKVConfig, flat_state
from luthier.models.targets import linear_layers
from luthier.training.settings import TrainConfig
from luthier.training.step import build_optimizer
from tests.methods.zoo import attached, base, classifies, ids, logits, loss, method, shake

# ---- plain PEFT --------------------------------------------------------------------------------------------------

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LINEAR = {
    "llama": SEVEN,
    "qwen2": SEVEN,
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "bert": ["query", "key", "value", "dense"],
}
"""Every linear layer but the output and the head, by hand."""
IA3_PLACES: dict[str, tuple[Any, Any]] = {
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "qwen2": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "bert": (r".*self\.(key|value)|.*layer\.\d+\.output\.dense", r".*layer\.\d+\.output\.dense"),
}
ADALORA: dict[str, Any] = {"init_r": 4, "target_r": 2, "lora_alpha": 32, "orth_reg_weight": 0.1}

CONFIGS: dict[str, Callable[[str], PeftConfig]] = {
    "lora": lambda kind: LoraConfig(r=4, lora_alpha=32, target_modules=LINEAR[kind]),
    "rslora": lambda kind: LoraConfig(r=4, lora_alpha=32, target_modules=LINEAR[kind], use_rslora=True),
    "dora": lambda kind: LoraConfig(r=4, lora_alpha=32, target_modules=LINEAR[kind], use_dora=True),
    "pissa": lambda kind: LoraConfig(r=4, lora_alpha=4, target_modules=LINEAR[kind], init_lora_weights="pissa"),
    "adalora": lambda kind: AdaLoraConfig(**ADALORA, tinit=2, tfinal=6, total_step=20, target_modules=LINEAR[kind]),
    "ia3": lambda kind: IA3Config(target_modules=IA3_PLACES[kind][0], feedforward_modules=IA3_PLACES[kind][1]),
    "vera": lambda kind: VeraConfig(r=8, d_initial=0.1, projection_prng_key=0, target_modules=LINEAR[kind]),
    "oft": lambda kind: OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False, target_modules=LINEAR[kind]),
    "prompt": lambda kind: PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="SAMPLE_VOCAB"),
    "p_tuning": lambda kind: PromptEncoderConfig(
        num_virtual_tokens=4, encoder_hidden_size=16, encoder_reparameterization_type="MLP"
    ),
    "p_tuning (lstm)": lambda kind: PromptEncoderConfig(
        num_virtual_tokens=4, encoder_hidden_size=16, encoder_reparameterization_type="LSTM", encoder_num_layers=2
    ),
}
"""PEFT's own configuration of each method, with the numbers of tests.methods.zoo."""

WRONG: dict[str, dict[str, Any]] = {
    "lora": {"lora_alpha": 31},
    "rslora": {"use_rslora": False},
    "dora": {"lora_alpha": 31},
    "pissa": {"init_lora_weights": True},
    "adalora": {"lora_alpha": 31},
    "vera": {"projection_prng_key": 1},
    "oft": {"use_cayley_neumann": True},
}
"""One field wrong, and the test must see it. Where there is none, the weights are wrong."""


SOLVED = {"p_tuning": ".mlp_head.4.", "p_tuning (lstm)": ".mlp_head.2."}
"""Layers that do not start as PEFT's: the virtual tokens begin at embeddings of the vocabulary."""


def plain_peft(name: str, kind: str, ours: nn.Module | None = None, **changes: Any) -> Any:
    """PEFT alone on the same base, as it starts, or with the trained weights of `ours` copied name by name."""
    config: Any = CONFIGS[name](kind)
    config.task_type = "SEQ_CLS" if classifies(kind) else "CAUSAL_LM"
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = kind == "gpt2"
    for key, value in changes.items():
        setattr(config, key, value)
    theirs: Any = get_peft_model(base(kind), config).eval()
    if ours is not None:
        copy(ours, theirs)
    return theirs


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copy(source: nn.Module, target: nn.Module) -> None:
    given, taken = trained(source), trained(target)
    assert given.keys() == taken.keys()
    for name, parameter in taken.items():
        parameter.data.copy_(given[name].data)


def copy_head(tuned: nn.Module, plain: nn.Module) -> None:
    """The head that trained along."""
    own = dict(plain.named_parameters())
    for name, parameter in trained(tuned).items():
        if ".modules_to_save.default." in name:
            own[name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")].data.copy_(parameter)


def apart(one: Tensor, other: Tensor) -> float:
    """Largest difference."""
    assert one.shape == other.shape
    return float((one - other).abs().max())


def peft_cells() -> list[Any]:
    kinds = {name: ["llama", "qwen2", "gpt2", "bert"] for name in CONFIGS} | {"oft": ["llama", "qwen2", "bert"]}
    return [pytest.param(name, kind, id=f"{name}-{kind}") for name in CONFIGS for kind in kinds[name]]


@pytest.mark.parametrize(("name", "kind"), peft_cells())
def test_ours_is_plain_peft_in_logits_and_gradients(name: str, kind: str) -> None:
    x = ids(kind)
    _, ours = attached(name, kind)
    theirs = plain_peft(name, kind)
    for (place, one), other in zip(trained(ours).items(), trained(theirs).values(), strict=True):
        same = torch.equal(one, other)
        assert same != (SOLVED.get(name, "-") in place), (
            "the same start: both draw from the same state of the generator"
        )
    shake(ours)
    copy(ours, theirs)
    told = logits(ours, x)
    assert apart(told, logits(theirs, x)) <= 1e-6
    assert apart(told, logits(ours, x, attention_mask=torch.ones_like(x))) <= 1e-6, "an explicit mask is no other input"
    for model in (ours, theirs):
        loss(model, x).backward()
    pairs = [(p.grad, trained(theirs)[n].grad) for n, p in trained(ours).items()]
    assert all(one is not None and other is not None and apart(one, other) <= 1e-6 for one, other in pairs)
    if name in WRONG:
        theirs = plain_peft(name, kind, ours, **WRONG[name])
    else:
        shake(theirs, 0.05, seed=10)
    assert apart(told, logits(theirs, x)) > 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_the_penalty_of_adalora_is_what_peft_adds_to_its_loss(kind: str) -> None:
    """PEFT adds it where the model computes the loss from labels; ours computes it in the task, and adds the same."""
    x = ids(kind)
    tuner, ours = attached("adalora", kind)
    shake(ours)
    theirs = plain_peft("adalora", kind, ours)
    penalty = tuner.penalty(ours)
    assert penalty is not None and penalty > 0.1
    with_labels = theirs(input_ids=x, labels=labels(kind, x)).loss
    assert float(with_labels - loss(theirs, x)) == pytest.approx(float(penalty), abs=2e-6)
    with_labels.backward()
    (loss(ours, x) + penalty).backward()
    for name, parameter in trained(ours).items():
        assert apart(parameter.grad, trained(theirs)[name].grad) <= 1e-6  # type: ignore[arg-type]
    by_hand = []  # the paper's ||P^T P - I|| + ||Q Q^T - I||, which PEFT, and so we, take the mean of and not the sum
    for name, weight in trained(ours).items():
        if ".lora_A." in name or ".lora_B." in name:
            gram = weight @ weight.T if ".lora_A." in name else weight.T @ weight
            by_hand.append((gram - torch.eye(4)).square().sum().sqrt())
    assert float(penalty) == pytest.approx(0.1 * float(sum(by_hand)) / len(by_hand), abs=1e-6)


def labels(kind: str, x: Tensor) -> Tensor:
    return torch.ones(len(x), dtype=torch.long) if classifies(kind) else x


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_the_ranks_of_adalora_move_as_in_peft_and_end_on_the_budget(kind: str) -> None:
    steps, x = 30, ids(kind, rows=4)
    tuner = method("adalora")
    ours = tuner.attach(base(kind), steps=steps, classify=classifies(kind)).eval()
    config = AdaLoraConfig(
        **ADALORA,
        tinit=3,
        tfinal=9,
        deltaT=1,
        total_step=steps,
        target_modules=LINEAR[kind],
        task_type="SEQ_CLS" if classifies(kind) else "CAUSAL_LM",
        fan_in_fan_out=kind == "gpt2",
    )
    theirs: Any = get_peft_model(base(kind), config).eval()
    copy(ours, theirs)
    optimizers = [torch.optim.SGD(trained(model).values(), lr=0.5) for model in (ours, theirs)]
    budgets = []
    for step in range(1, steps + 1):
        (loss(ours, x) + tuner.penalty(ours)).backward()  # type: ignore[operator]
        theirs(input_ids=x, labels=labels(kind, x)).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        tuner.after_step(ours, step)
        theirs.base_model.update_and_allocate(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        found, told = (model.peft_config["default"].rank_pattern for model in (ours, theirs))  # type: ignore[index]
        assert found == told, step
        budgets += [sum(map(sum, found.values()))] if found else []
    ranks = [sum(pattern) for pattern in found.values()]
    assert len(set(ranks)) > 1, "layers differ"
    assert budgets == sorted(budgets, reverse=True) and 2 * len(ranks) < budgets[0] < 4 * len(ranks), "the budget falls"
    assert sum(ranks) == 2 * len(ranks), "target_rank for each layer on average"
    left = [int((p != 0).sum()) for n, p in trained(ours).items() if ".lora_E." in n]
    assert sorted(left) == sorted(ranks), "what the budget left out is zero, and nothing else"


def test_lora_plus_steps_as_the_optimizer_of_peft() -> None:
    from peft.optimizers import create_loraplus_optimizer

    x = ids("qwen2")
    tuner, ours = attached("lora_plus", "qwen2")
    shake(ours)
    start = {name: parameter.detach().clone() for name, parameter in trained(ours).items()}
    theirs = plain_peft("lora", "qwen2", ours)
    config = TrainConfig(weight_decay=0.0)
    plus = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, betas=config.betas, weight_decay=0.0
    )
    for model, optimizer in (
        (ours, build_optimizer(ours, config, 1e-3, partial(tuner.lr_ratio_of, ours))),
        (theirs, plus),
    ):
        for _ in range(3):
            loss(model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in trained(ours).items():
        assert apart(parameter, trained(theirs)[name]) <= 1e-6, name  # steps are of 1.6e-2
        assert (apart(parameter, start[name]) > 4e-3) == (".lora_B." in name), "B goes sixteen times as far"


# ---- prefixes ----------------------------------------------------------------------------------------------------


def lively(kind: str) -> Any:
    """The base with weights so large that what attention sees matters."""
    model = base(kind)
    shake(model, 0.15)
    return model


def prefix_weights(model: nn.Module) -> list[nn.Parameter]:
    """One per layer, [length, 2 * key/value size]: keys, then values."""
    return [parameter for name, parameter in model.named_parameters() if ".luthier_prefix." in name and "_kv." in name]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma", "gpt2"])
def test_a_prefix_of_the_keys_and_values_of_real_tokens_is_those_tokens(kind: str) -> None:
    """They stand at positions -4 to -1, so that the text keeps its own; learned positions start at zero instead."""
    plain, x = lively(kind), ids(kind)
    front = torch.tensor([[11, 250, 37, 142]])
    shift = 4 if kind == "gpt2" else 0
    before, places = torch.arange(-4, 0)[None] + shift, torch.arange(x.shape[1])[None] + shift
    both, all_places = torch.cat([front.expand(2, -1), x], 1), torch.cat([before, places], 1).expand(2, -1)
    told = logits(plain, both, position_ids=all_places)[:, 4:]
    with torch.no_grad():
        cache = plain(input_ids=front, position_ids=before, use_cache=True).past_key_values
    _, model = attached("p_tuning_v2", kind, model=lively(kind))
    for weight, layer in zip(prefix_weights(model), cache.layers, strict=True):
        keys, values = (kept[0].transpose(0, 1).flatten(1) for kept in (layer.keys, layer.values))
        weight.data = torch.cat([keys, values], 1)
    places = places.expand(2, -1)
    assert apart(logits(model, x, position_ids=places), told) < 1e-5
    assert apart(logits(plain, x, position_ids=places), told) > 1e-2, "the front tokens matter"
    prefix_weights(model)[0].data[:, 0] += 0.5
    assert apart(logits(model, x, position_ids=places), told) > 1e-4


def watch(model: nn.Module, ending: str) -> dict[str, Tensor]:
    """Filled with input and output of the module whose name ends so, when the model runs."""
    (module,) = (module for name, module in model.named_modules() if name.endswith(ending))
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen["in"] = args[0] if args else kwargs["hidden_states"]
        seen["out"] = output[0] if isinstance(output, tuple) else output

    module.register_forward_hook(keep, with_kwargs=True)
    return seen


def turned(x: Tensor) -> Tensor:
    """Rotary positions of [B, heads, T, 8], written out: pairs (i, i + 4) turn by t / 10000^(i / 4)."""
    angles = torch.arange(x.shape[2])[:, None] / 10000 ** (torch.arange(4) / 4)
    one, other = x[..., :4], x[..., 4:]
    return torch.cat([one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()], -1)


def projections(kind: str, attention: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value, [B, 4, T, 8] each, from the weights of a plain attention."""
    match kind:
        case "bert":
            parts = [F.linear(x, part.weight, part.bias) for part in (attention.query, attention.key, attention.value)]
        case "gpt2":
            parts = list((x @ attention.c_attn.weight + attention.c_attn.bias).split(32, -1))
        case _:
            parts = [
                F.linear(x, part.weight, part.bias) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
            ]
    query, key, value = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in parts)
    if kind == "qwen2":
        query, key, value = turned(query), turned(key).repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    return query, key, value


ATTENTION = {"bert": "layer.1.attention.self", "gpt2": "h.1.attn", "qwen2": "layers.1.self_attn"}
MIXED = {"bert": ("", "out"), "gpt2": (".c_proj", "in"), "qwen2": (".o_proj", "in")}
"""Where the mixed values of all heads come by: as the output of BERT's attention, else as the input of its last layer."""


@pytest.mark.parametrize("kind", ATTENTION)
def test_prefix_attention_is_the_gated_sum_of_he_et_al(kind: str) -> None:
    """arXiv 2110.04366, equation 7: (1 - g) Attn(x, K, V) + g Attn(x, P_k, P_v), g the share of the prefix."""
    _, model = attached("p_tuning_v2", kind, model=lively(kind))
    shake(model, 1.0)
    entered, mixed = watch(model, ATTENTION[kind]), watch(model, ATTENTION[kind] + MIXED[kind][0])
    logits(model, ids(kind))
    (plain,) = (module for name, module in lively(kind).named_modules() if name.endswith(ATTENTION[kind]))
    with torch.no_grad():
        query, key, value = projections(kind, plain, entered["in"])
        front = prefix_weights(model)[1].unflatten(1, (2, -1, 8)).permute(1, 2, 0, 3)  # [2, heads, 4, 8]
        prefix_key, prefix_value = front.repeat_interleave(2, 1) if kind == "qwen2" else front
        scores, prefix_scores = query @ key.mT / 8**0.5, query @ prefix_key.mT / 8**0.5
        if kind != "bert":
            scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        gate = torch.sigmoid(prefix_scores.logsumexp(-1) - scores.logsumexp(-1))[..., None]
        text, front = scores.softmax(-1) @ value, prefix_scores.softmax(-1) @ prefix_value
        told = ((1 - gate) * text + gate * front).transpose(1, 2).flatten(2)
        found = mixed[MIXED[kind][1]]
    assert gate.min() > 1e-3 and gate.max() < 1 - 1e-3
    assert apart(found, told) < 1e-5
    assert apart(found, text.transpose(1, 2).flatten(2)) > 0.1


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "bert"])
def test_p_tuning_v2_is_prefix_tuning_with_its_mlp_worked_out(kind: str) -> None:
    x = ids(kind)
    _, deep = attached("prefix", kind)
    shake(deep, 0.3)
    _, flat = attached("p_tuning_v2", kind)
    weights = {name.replace(".default", ""): parameter.detach() for name, parameter in deep.named_parameters()}
    emb, down, bias = (
        next(p for n, p in weights.items() if n.endswith(f"prefixkv_{part}"))
        for part in ("emb.weight", "in.weight", "in.bias")
    )
    for name, parameter in trained(flat).items():
        if "modules_to_save" in name:
            parameter.data.copy_(trained(deep)[name])
        else:
            up = name.replace("_kv.default", "_out")
            parameter.data = torch.tanh(emb @ down.T + bias) @ weights[f"{up}.weight"].T + weights[f"{up}.bias"]
    told = logits(deep, x)
    assert apart(logits(flat, x), told) <= 1e-6
    kept = get_peft_model_state_dict(deep, flat_state(deep))
    plain = get_peft_model_state_dict(flat)
    assert kept.keys() == plain.keys()
    assert all(kept[name].shape == plain[name].shape and apart(kept[name], plain[name]) <= 1e-6 for name in kept)
    prefix_weights(flat)[1].data[0] += 0.5
    assert apart(logits(flat, x), told) > 1e-5


def test_a_prefix_adds_no_layer_with_a_weight() -> None:
    """Who walks over a model and asks each module for its weight gets an answer from ours as well."""
    _, model = attached("prefix", "qwen2")
    inner: Any = model.get_base_model()  # type: ignore[operator]
    assert linear_layers(inner).keys() == linear_layers(base("qwen2")).keys() | {
        name for name, module in inner.named_modules() if "prefixkv_" in name and isinstance(module, nn.Linear)
    }


# ---- several parts under gates -----------------------------------------------------------------------------------

QUERY_VALUE = {
    "llama": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "bert": ["query", "value"],
}
PARTS: dict[str, Callable[[str], list[PeftConfig]]] = {
    "unipelt": lambda kind: [
        PrefixKVConfig(length=4),
        BottleneckConfig(place="pfeiffer", size=8),
        LoraConfig(r=4, lora_alpha=4, target_modules=QUERY_VALUE[kind], fan_in_fan_out=kind == "gpt2"),
    ],
    "mam": lambda kind: [PrefixKVConfig(length=4), BottleneckConfig(place="parallel", size=8, scale=2.0)],
}
"""What the composite methods are made of, with the numbers of tests.methods.zoo."""
CONTAINERS = {"kv": "prefixkv_kv", "down": "bottleneck_down", "up": "bottleneck_up", "A": "lora_A", "B": "lora_B"}


def one_after_the_other(name: str, kind: str, whole: nn.Module) -> Any:
    """The parts of a composite put on one base by their own tuners, with the weights of `whole`."""
    model = base(kind)
    for config in PARTS[name](kind):
        inject_adapter_in_model(config, model)
    copy_head(whole, model)
    left = {key: parameter for key, parameter in model.named_parameters() if ".default" in key}
    for key, parameter in trained(whole).items():
        short = key.removeprefix("base_model.model.")
        for container, other in CONTAINERS.items():
            short = short.replace(f".{name}_{container}.", f".{other}.")
        if "gate." not in short and "modules_to_save" not in short:
            left.pop(short).data.copy_(parameter.data)
    assert not left, "every weight of the parts comes from the whole"
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "bert"])
def test_mam_is_a_prefix_and_a_scaled_parallel_adapter(kind: str) -> None:
    x = ids(kind)
    _, model = attached("mam", kind)
    shake(model, 0.2)
    told = logits(model, x)
    parts = one_after_the_other("mam", kind, model)
    assert apart(logits(parts, x), told) <= 1e-6
    for name, parameter in parts.named_parameters():
        if "bottleneck_up" in name:
            parameter.data *= 2  # as if the scale were 4
    assert apart(logits(parts, x), told) > 1e-3


def set_gates(model: nn.Module, value: float) -> None:
    for name, parameter in trained(model).items():
        if "gate." in name:
            parameter.data.fill_(value if name.endswith(".bias") else 0.0)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "bert"])
def test_unipelt_with_open_gates_is_its_parts_and_with_shut_gates_the_base(kind: str) -> None:
    """The paper's gate scales keys and values, so a shut one leaves an encoder a prefix of zeros; ours hides it."""
    x = ids(kind)
    _, model = attached("unipelt", kind)
    shake(model, 0.2)
    between = logits(model, x)
    parts = one_after_the_other("unipelt", kind, model)
    set_gates(model, 60.0)
    opened = logits(model, x)
    assert apart(opened, logits(parts, x)) <= 1e-6
    set_gates(model, -60.0)
    shut = logits(model, x)
    for name, parameter in parts.named_parameters():
        if ".default" in name:
            parameter.data.zero_()
    reference = parts if kind == "bert" else base(kind)
    if kind != "bert":
        assert apart(logits(parts, x), shut) > 1e-4, "a prefix of zeros is not none"
    assert apart(shut, logits(reference, x)) <= 1e-6
    assert min(apart(between, opened), apart(between, shut), apart(opened, shut)) > 1e-3


# ---- bottlenecks -------------------------------------------------------------------------------------------------

LAYER = {"llama": "layers.1", "gpt2": "h.1", "bert": "encoder.layer.1"}
ATTENTION_OUT = {"llama": "self_attn.o_proj", "gpt2": "attn.c_proj", "bert": "attention.output.dense"}
Delta = Callable[[Tensor], Tensor]
BOTTLENECKS: dict[str, tuple[dict[str, Any], str]] = {
    "houlsby": ({"name": "houlsby", "size": 8}, "output"),
    "output": ({"name": "adapter", "place": "output", "size": 8, "activation": "silu"}, "output"),
    "pfeiffer": ({"name": "pfeiffer", "size": 8, "activation": "tanh"}, "pfeiffer"),
    "parallel": ({"name": "parallel_adapter", "size": 8, "scale": 3}, "parallel"),
    "parallel input": ({"name": "scaled_parallel", "size": 8, "reads": "input", "learned_scale": True}, "input"),
}
"""Settings, and the formula of the feed-forward."""


def deltas(model: nn.Module, layer: str, activation: str, scale: float) -> list[Delta]:
    """s * (W_up f(W_down u + b_down) + b_up) of each bottleneck of the layer, in their order."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        place, found, short = name.partition(".bottleneck_")
        if found and f".{layer}." in name:
            groups.setdefault(place, {})[short.replace(".default", "")] = parameter.detach()

    def delta(w: dict[str, Tensor]) -> Delta:
        factor = w.get("scale", torch.tensor(scale))
        return lambda u: (
            factor * (ACT2FN[activation](u @ w["down.weight"].T + w["down.bias"]) @ w["up.weight"].T + w["up.bias"])
        )

    return [delta(weights) for weights in groups.values()]


def post_norm(layer: Any, x: Tensor, a: Tensor, first: Delta, delta: Delta) -> dict[str, Tensor]:
    """BERT's layer from its input and its attention's output before the residual, by each formula."""
    x = layer.attention.output.LayerNorm(a + first(a) + x)
    h, norm = layer.output.dense(layer.intermediate(x)), layer.output.LayerNorm
    return {
        "output": norm(h + delta(h) + x),
        "pfeiffer": norm(h + delta(norm(h + x)) + x),
        "parallel": norm(h + delta(x) + x),
    }


def pre_norm(norm: Any, ffn: Any, x: Tensor, a: Tensor, first: Delta, delta: Delta) -> dict[str, Tensor]:
    """A decoder's layer, the same."""
    x = x + a + first(a)
    u = norm(x)
    h = ffn(u)
    return {
        "output": x + h + delta(h),
        "pfeiffer": x + h + delta(h + x),
        "parallel": x + h + delta(x),
        "input": x + h + delta(u),
    }


@pytest.mark.parametrize("kind", LAYER)
@pytest.mark.parametrize("place", BOTTLENECKS)
def test_a_layer_with_bottlenecks_is_its_formula(place: str, kind: str) -> None:
    settings, formula = BOTTLENECKS[place]
    if kind == "bert" and formula == "input":
        formula = "parallel"  # after the norm there is only one input
    tuner: Any = METHODS.parse(settings)
    model = tuner.attach(base(kind), steps=1, classify=classifies(kind)).eval()
    shake(model, 0.3)
    found = deltas(model, LAYER[kind], tuner.activation, getattr(tuner, "scale", 1.0))
    assert len(found) == (2 if place == "houlsby" else 1)
    wrapped = ".base_layer" if place == "houlsby" and kind != "bert" else ""
    whole, attention = watch(model, LAYER[kind]), watch(model, f"{LAYER[kind]}.{ATTENTION_OUT[kind]}{wrapped}")
    logits(model, ids(kind))
    layer: Any = next(module for name, module in base(kind).named_modules() if name.endswith(LAYER[kind]))
    first: Delta = found[0] if place == "houlsby" else torch.zeros_like
    with torch.no_grad():
        given = (whole["in"], attention["out"], first, found[-1])
        match kind:
            case "bert":
                told = post_norm(layer, *given)
            case "gpt2":
                told = pre_norm(layer.ln_2, layer.mlp, *given)
            case _:
                told = pre_norm(layer.post_attention_layernorm, layer.mlp, *given)
    assert apart(whole["out"], told.pop(formula)) < 1e-5
    assert min(apart(whole["out"], other) for other in told.values()) > 1e-3, "the formulas are four"


@pytest.mark.parametrize("kind", LAYER)
def test_a_parallel_adapter_without_a_bend_is_lora_on_the_feed_forward(kind: str) -> None:
    """FFN(x) + s (W_up W_down x + W_up b_down + b_up): B = W_up, A = W_down, alpha / rank = s, and a bias."""
    x, scale = ids(kind), 2.0
    tuner = METHODS.parse({"name": "parallel_adapter", "size": 8, "scale": scale, "reads": "input"})
    model = tuner.attach(base(kind), steps=1, classify=classifies(kind)).eval()
    shake(model, 0.2)
    bent = logits(model, x)
    for module in model.modules():
        if hasattr(module, "bottleneck_down"):
            module.held("act")["default"] = nn.Identity()  # type: ignore[operator, union-attr]
    plain = base(kind)
    copy_head(model, plain)
    weights = {name.replace(".default", ""): parameter.detach() for name, parameter in model.named_parameters()}
    for name, module in list(plain.named_modules()):
        enters, leaves = ("intermediate", "output.dense") if kind == "bert" else ("mlp", "mlp")
        if name.endswith(enters):
            place = name.removesuffix(enters) + ("output" if kind == "bert" else "mlp")
            down, up = (f"base_model.model.{place}.bottleneck_{half}" for half in ("down", "up"))
            matrix = weights[f"{up}.weight"] @ weights[f"{down}.weight"]
            bias = weights[f"{up}.weight"] @ weights[f"{down}.bias"] + weights[f"{up}.bias"]
            add(module, plain.get_submodule(name.removesuffix(enters) + leaves), scale * matrix, scale * bias)
    told = logits(model, x)
    assert apart(logits(plain, x), told) <= 2e-6
    assert apart(bent, told) > 1e-3


def add(enters: nn.Module, leaves: nn.Module, matrix: Tensor, bias: Tensor) -> None:
    """Add `matrix` times what goes into one module, and `bias`, to what comes out of another."""
    seen: list[Tensor] = []
    enters.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    leaves.register_forward_hook(lambda module, args, output: output + seen.pop() @ matrix.T + bias)


# ---- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "bert"])
def test_bitfit_is_training_the_biases_themselves(kind: str) -> None:
    x = ids(kind)
    tuner = METHODS.parse("bitfit")
    ours = tuner.attach(base(kind), steps=5, classify=classifies(kind)).eval()
    theirs = base(kind)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or name.startswith("classifier."))
    counts = [sum(p.numel() for p in trained(model).values()) for model in (ours, theirs)]
    assert counts[0] == counts[1]
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
        for _ in range(5):
            loss(model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
    merged, start = dict(tuner.merge(ours).named_parameters()), dict(base(kind).named_parameters())
    assert merged.keys() == start.keys()
    for name, parameter in theirs.named_parameters():
        assert apart(merged[name], parameter) <= 1e-7, name
        assert parameter.requires_grad or torch.equal(parameter, start[name])
    assert max(apart(merged[name], start[name]) for name in merged if name.endswith("bias")) > 1e-2


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("name", ["full", "freeze"])
def test_full_and_freeze_are_plain_training_of_all_and_of_the_last_layer(name: str, kind: str) -> None:
    x = ids(kind)
    _, ours = attached(name, kind)
    theirs, start = base(kind), dict(base(kind).named_parameters())
    for key, parameter in theirs.named_parameters():
        parameter.requires_grad_(name == "full" or f".{LAYER[kind]}." in key or key.startswith("classifier."))
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
        for _ in range(3):
            loss(model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert trained(ours).keys() == trained(theirs).keys()
    for key, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs.get_parameter(key)), key
        assert parameter.requires_grad or torch.equal(parameter, start[key])
    assert max(apart(parameter, start[key]) for key, parameter in trained(ours).items()) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_merged_dora_weight_is_the_formula_of_the_paper(kind: str) -> None:
    """arXiv 2402.09353, equation 5: m (W + s B A) / ||W + s B A||, the norm taken over each output's row."""
    tuner, model = attached("dora", kind)
    shake(model)
    weights = {name.removeprefix("base_model.model."): p.detach().clone() for name, p in trained(model).items()}
    merged, start = dict(tuner.merge(model).named_parameters()), dict(base(kind).named_parameters())
    layers = [name.removesuffix(".lora_A.default.weight") for name in weights if ".lora_A." in name]
    assert len(layers) == 2 * (4 if kind == "gpt2" else 7)
    for layer in layers:
        down, up = weights[f"{layer}.lora_A.default.weight"], weights[f"{layer}.lora_B.default.weight"]
        magnitude = weights[f"{layer}.lora_magnitude_vector.default.weight"]
        before, after = start[f"{layer}.weight"], merged[f"{layer}.weight"]
        if kind == "gpt2":  # Conv1D keeps [in, out]
            before, after = before.T, after.T
        moved = before + 32 / 4 * up @ down
        told = magnitude[:, None] * moved / moved.square().sum(1, keepdim=True).sqrt()
        assert apart(after, told) <= 1e-6
        assert apart(after, moved) > 1e-3, "without the norm it is another weight"


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_a_merged_oft_weight_is_the_base_turned_by_the_cayley_transform(kind: str, spread: float) -> None:
    """arXiv 2306.07280, section 3.2: R = (I + Q)(I - Q)^-1, Q skew, so that R is orthogonal however far it turns."""
    tuner, model = attached("oft", kind)
    shake(model, spread)
    turns = {name.removeprefix("base_model.model."): p.detach().clone() for name, p in trained(model).items()}
    merged, start = dict(tuner.merge(model).named_parameters()), dict(base(kind).named_parameters())
    for name, vectors in turns.items():
        if ".oft_R." not in name:
            continue
        skew = torch.zeros(len(vectors), 8, 8, dtype=torch.float64)
        skew[:, *torch.triu_indices(8, 8, 1)] = vectors.double()
        skew = skew - skew.mT
        turn = torch.block_diag(*((torch.eye(8) + skew) @ torch.linalg.inv(torch.eye(8) - skew)))
        assert apart(turn @ turn.T, torch.eye(len(turn), dtype=torch.float64)) < 1e-9
        weight = name.partition(".oft_R.")[0] + ".weight"
        before, after = start[weight].double(), merged[weight].double()
        # -Q turns back as far as Q turns: which of the two a weight means is a convention.
        assert min(apart(after, before @ turn), apart(after, before @ turn.T)) <= 1e-6
        assert apart(after @ after.T, before @ before.T) <= 1e-6, "lengths and angles of the neurons stay"
        assert apart(after, before) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_p_tuning_starts_at_embeddings_of_the_vocabulary(kind: str, encoder: str) -> None:
    table = base(kind).get_input_embeddings().weight
    for init, hidden, near in (("vocabulary", 16, True), ("vocabulary", 2, False), ("random", 16, False)):
        torch.manual_seed(3)
        spec = {"name": "p_tuning", "length": 4, "hidden": hidden, "encoder": encoder, "init": init}
        tuned = METHODS.parse(spec).attach(base(kind), steps=1, classify=classifies(kind))
        start = tuned.get_prompt_embedding_to_save("default")
        nearest = torch.cdist(start, table).min(1)
        assert bool((nearest.values < 1e-3).all()) == near
        assert not near or len(set(nearest.indices.tolist())) > 1
