"""Which layers of a model an adapter may go into: plain linear layers, and none that routes tokens or only gates."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection
from operator import itemgetter
from typing import Any

from luthier.core.errors import InputError, did_you_mean

HEADS = ("score", "classifier", "classification_head")
"""What transformers calls a classification head, which trains as a whole with every method."""
UNPACKED = [*HEADS, r".*\bpooler", "pre_classifier"]
"""Of a classifier: these train as a whole or start random, so they are never packed."""
OTHER = "is no part of the language model"
EXPERTS = "holds all experts in one tensor, which is not a linear layer"
LEAST = 0.01
"""Smallest share of the parameters that is worth a word when it stays untouched."""
NARROW = 8
"""all-linear leaves out layers with fewer inputs or outputs: gates of one output, Gemma 3n's mixing coefficients."""

UNTRAINED = {
    "indexer": "chooses which tokens are attended to, which has no gradient",
    "encoder_attn": "attends to an encoder that this model does not have",
}
"""Part of a name -> why layers there get no gradient."""


def in_head(name: str) -> bool:
    """Does the parameter or module of that name belong to a classification head?"""
    return any(part in HEADS for part in name.split("."))


def linear_layers(model: Any) -> dict[str, Any]:
    """Name -> module of every layer that takes an adapter: plain, quantized or Conv1D, narrow ones and heads too."""
    return {name: layer for name, layer, why in _matrices(model) if not why}


def _matrices(model: Any) -> list[tuple[str, Any, str]]:
    """(name, module, why no adapter goes there or "") of each module with a matrix of weights, but no embeddings."""
    from torch.nn import Embedding

    modules, text = dict(model.named_modules()), text_part(model)
    found = {n: m for n, m in modules.items() if getattr(getattr(m, "weight", None), "ndim", 0) == 2}
    return [
        (n, m, why_unfit(n, m, modules) if n.startswith(text) or in_head(n) else OTHER)
        for n, m in found.items()
        if not isinstance(m, Embedding)
    ]


def text_part(model: Any) -> str:
    """Name of the language model in a multimodal one, with a dot behind it; empty where the whole model is one."""
    if model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder()
    return next(f"{name}." for name, module in model.named_modules() if module is decoder)


def why_unfit(name: str, module: Any, modules: dict[str, Any]) -> str:
    """Why `module`, which has a matrix of weights and stands at `name` among `modules`, takes no adapter; or empty."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from luthier.kernels.frozen_linear import is_packed

    parts = name.split(".")
    gates = (i for i, part in enumerate(parts) if part == "gate")  # a router, or a part of one: beside the experts
    if "router" in name.lower() or any(hasattr(modules[".".join(parts[:i])], "experts") for i in gates):
        return "routes tokens to experts, which an adapter must not disturb"
    if reasons := [why for part in parts for start, why in UNTRAINED.items() if part.startswith(start)]:
        return reasons[0]
    parent = modules[".".join(parts[:-1])]
    if parts[-1] in ("dt_proj", "out_proj") and hasattr(parent, "A_log") and hasattr(parent, "D"):  # a Mamba block
        return "is read by its weight and never called, so an adapter there would do nothing"
    linear = isinstance(module, nn.Linear | Conv1D)
    usual = type(module).forward in (nn.Linear.forward, Conv1D.forward)
    if linear and not (usual or is_packed(module) or module.weight.dtype.itemsize < 2):
        try:  # whether it maps [2, in] to [2, out]
            with torch.no_grad():
                linear = module(torch.zeros(2, sides(module)[0]).to(module.weight)).shape == (2, sides(module)[1])
        except Exception:  # whatever it is, it takes no plain input, or gives no tensor
            linear = False
    return "" if linear else f"is a {type(module).__name__}, not a plain linear layer"


def sides(layer: Any) -> tuple[int, ...]:
    """Number of inputs and outputs, from the module where it has them: a packed weight has another shape.

    Of a tensor of experts, [experts, a, b], those of one expert.
    """
    own = tuple(int(getattr(layer, side)) for side in ("in_features", "out_features") if hasattr(layer, side))
    return own or tuple(getattr(layer, "weight", layer).shape[-2:])


def check_targets(
    model: Any, targets: tuple[str, ...] | str, blocks: tuple[int, ...] = (), taken: Collection[str] = ()
) -> dict[str, Any]:
    """The layers that `targets` name, in the numbered `blocks` if any, without the names `taken`; all must hit."""
    every = linear_layers(model)
    layers = {n: layer for n, layer in every.items() if not in_head(n) and n.rpartition(".")[2] not in taken}
    if isinstance(targets, str):
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        chosen = {n: each for n, each in layers.items() if each is not output and min(sides(each)) >= NARROW}
        if not chosen:
            message = "method.targets: this model has no linear layers to adapt"
            raise InputError(message, fix="method=full or method=freeze")
    else:
        short = sorted({name.rpartition(".")[2] for name in layers})
        for target in targets:
            if not any(is_named(name, target) for name in layers):
                message = f"method.targets: {_why_not(model, target, short, every, taken)}"
                raise InputError(message, fix=f"choose from {', '.join(short)}, or method.targets=all-linear")
        chosen = {n: layer for n, layer in layers.items() if any(is_named(n, target) for target in targets)}
    if not blocks:
        return chosen
    numbers = {name: block_of(name) for name in chosen}
    there = sorted({n for n in numbers.values() if n is not None})
    if missing := sorted(set(blocks).difference(there)):
        fix = f"choose from {', '.join(map(str, there))}"
        raise InputError(f"method.layers: no target is in layer {missing[0]}", fix=fix)
    return {name: layer for name, layer in chosen.items() if numbers[name] in blocks}


def is_named(name: str, target: str) -> bool:
    """Whether the module `name` is the one, or one of those, that `target` names by its last parts."""
    return name == target or name.endswith(f".{target}")


def block_of(name: str) -> int | None:
    """Number of the block that a module stands in, as PEFT counts it: the first number in its name."""
    found = re.search(r"\.(\d+)(\.|$)", name)
    return int(found[1]) if found else None


def _why_not(model: Any, target: str, short: Collection[str], every: Collection[str], taken: Collection[str]) -> str:
    """Why `target` names none of the layers that an adapter may go into, whose last names are `short`."""
    if target.rpartition(".")[2] in taken:
        return f"{target!r} takes no LoRA here: PEFT reads this name as the experts, which are not linear layers"
    if any(is_named(name, target) for name in every):
        return f"{target!r} is the classification head, which trains as a whole with every method"
    for name, _, why in _matrices(model):
        if why and is_named(name, target):
            return f"{target!r} takes no adapter: {name} {why}"
    return f"no layer is named {target!r}{did_you_mean(target, short)}"


def as_targets(names: Collection[str], model: Any) -> str | list[str]:
    """`names` of modules as PEFT takes them: a short regular expression where one hits the same, or a list."""
    pattern = "|".join(sorted({re.sub(r"(\\\.)\d+(?=\\\.|$)", r"\1\\d+", re.escape(name)) for name in names}))
    hit = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    return pattern if hit == set(names) else sorted(names)


def check_rank(layers: dict[str, Any], rank: int, setting: Callable[[int], str] = "method.rank={}".format) -> None:
    """InputError where `rank` is above a side of a layer; `fix` says what to type for the largest that fits."""
    widths = ((min(sides(layer)), name) for name, layer in layers.items())
    smallest, narrowest = min(widths, key=itemgetter(0), default=(rank, ""))
    if rank > smallest:
        fix = setting(smallest) if smallest else "another base: no rank fits into a layer of width 0"
        raise InputError(f"method.rank: {rank} is more than the {smallest} of layer {narrowest}", fix=fix)


def refuse_conv1d(layers: dict[str, Any], why: str) -> None:
    """InputError where one of the `layers` is GPT-2's Conv1D; `why` says which method cannot do what with it."""
    for name, layer in layers.items():
        if not hasattr(layer, "in_features"):
            message = f"{why} {name}, which is a {type(layer).__name__} and not an nn.Linear"
            raise InputError(message, fix="method=lora")


def norms(model: Any) -> list[str]:
    """Names of the norms of the language model: modules of a class called so whose only weights are vectors."""
    text, found, modules = text_part(model), [], dict(model.named_modules())
    for name, module in modules.items():
        if any(part.startswith(tuple(UNTRAINED)) for part in name.split(".")):
            continue
        if hasattr(modules[name.rpartition(".")[0]], "A_log") and hasattr(module, "variance_epsilon"):
            continue  # Mamba's code reads its weight and its epsilon, and does not call it
        own = dict(module.named_parameters())
        vectors = own.keys() <= {"weight", "bias"} and all(weight.ndim == 1 for weight in own.values())
        if own and vectors and "norm" in type(module).__name__.lower() and name.startswith(text) and not in_head(name):
            found.append(name)
    return found


def read_as_experts(model: Any) -> frozenset[str]:
    """Names that PEFT's LoRA takes for the fused experts of this model, though plain layers are called so as well."""
    # An adapter of those would be saved under other names. Goes when PEFT tells them apart (seen in 0.21.2).
    from peft.utils import transformers_weight_conversion as rewritten

    families: dict[str, str] = getattr(rewritten, "_MODEL_TO_CONVERSION_PATTERN", {})
    names: dict[str, dict[str, str]] = getattr(rewritten, "_MOE_TARGET_MODULE_MAPPING", {})
    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    return frozenset(names.get(families.get(kind, ""), ()))


def expert_tensors(model: Any) -> dict[str, Any]:
    """Name -> tensor of the weights of all experts of a block, [experts, in, out] or [experts, out, in]."""
    text = text_part(model)
    return {
        f"{name}.{own}": weight
        for name, module in model.named_modules()
        # GraniteMoeParallelExperts is called input_linear.
        if name.startswith(text) and "expert" in f"{name} {type(module).__name__}".lower()
        for own, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3
    }


def untouched(model: Any, adapted: Collection[str], blocks: tuple[int, ...] = (), taken: Collection[str] = ()) -> str:
    """A note on what all-linear leaves as it is, a percent or more of the parameters for one reason; or empty.

    `adapted` are the names of the modules and parameters that take an adapter, in the numbered `blocks` if any;
    `taken` are names of layers that the method must leave out. Embeddings and the output are not mentioned.
    """
    from torch.nn import Embedding

    modules, experts, plain = dict(model.named_modules()), expert_tensors(model), linear_layers(model)
    sizes = {n: weight.numel() for n, weight in model.named_parameters()}
    sizes |= {f"{n}.weight": math.prod(sides(layer)) for n, layer in plain.items()}  # a packed weight counts too few
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    text = text_part(model)
    unfit = {name: why for name, _, why in _matrices(model)}
    found: dict[str, Counter[str]] = {}
    for name, weight in model.named_parameters():
        parent, _, own = name.rpartition(".")
        module, block = modules[parent], block_of(name)
        if (
            isinstance(module, Embedding)
            or module is output
            or weight.ndim < 2
            or own.endswith("bias")
            or in_head(name)
        ):
            continue
        if {name, parent} & set(adapted) or (blocks and block is not None and block not in blocks):
            continue
        if name in experts:
            why = EXPERTS
        elif parent in plain:
            why = "PEFT reads this name as experts" if parent.rpartition(".")[2] in taken else "is too narrow"
        elif not name.startswith(text):
            why = OTHER
        else:
            why = unfit.get(parent) or f"is in a {type(module).__name__}, not in a plain linear layer"
        found.setdefault(why, Counter())[re.sub(r"^.*?\.\d+\.", "", name.removesuffix(".weight"))] += sizes[name]
    said = []
    for why, names in found.items():
        if (share := sum(names.values()) / sum(sizes.values())) >= LEAST:
            listed = sorted(names)
            said.append(f"{share:.0%} ({', '.join(listed[:4])}{', ...' if len(listed) > 4 else ''}: {why})")
    return f"of the parameters these stay as they are: {', '.join(said)}" if said else ""
