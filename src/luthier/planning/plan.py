"""The plan of a run: bytes by component, seconds, and what would make it fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from luthier.data.batches import micro_batches, step_numbers
from luthier.kernels.cross_entropy import CHUNK_BYTES, FEWEST, SLICE_BYTES
from luthier.methods.base import Method
from luthier.models.heads import in_head
from luthier.models.load import device, quantization, skeleton
from luthier.models.settings import ModelConfig
from luthier.planning import machine
from luthier.planning.tracing import Trace, trace
from luthier.rendering.row import EVEN, even_length
from luthier.training.settings import TrainConfig

SAMPLE = 400
"""Steps of the first epoch that are looked at."""

OPTIMIZER = {
    "adamw": 8,
    "adam": 8,
    "paged_adamw": 8,
    "rmsprop": 4,
    "sgd": 4,
    "adafactor": 0,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
}
"""Bytes of state for each parameter that trains; Adafactor keeps a row and a column."""


HOLDS = {"cpu": 1.3}
"""What a process holds for each byte that lives at the peak: blocks of many sizes leave holes in glibc's heap."""
KERNELS = {"cpu": 26_000_000}
"""Bytes of the kernels that oneDNN compiles and keeps for each size of a pass in half precision.

With these two a plan was 3 % off at most on Qwen2-0.5B's shape with 2 and 24 layers and on the embedded base, packed
and padded, with half of a row learned and two tokens of it (benchmarks/training says it of each run).
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What a run has to work through."""

    steps: int
    tokens: float
    """Of a step, on average, padding counted."""
    targets: float
    """Of a step, on average."""
    passes: float
    """Of a step, on average."""
    largest: list[int]
    """Lengths of the rows of the pass with the most tokens."""
    learned: int
    """Targets of that pass."""
    shapes: int = 1
    """Different sizes among the passes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will need, before it begins."""

    device: str
    parts: dict[str, int]
    """Bytes by component: program, weights, trained weights, gradients, optimizer, activations, logits, kernels."""
    seconds: float
    """Of all steps."""
    total: int
    """Bytes that the device has."""
    free: int
    """Bytes of them that nobody uses."""
    tokens: int
    """Of the largest pass."""
    flops: float = 0.0
    """Floating-point operations of the matrix products of all steps."""

    @property
    def peak(self) -> int:
        """Most bytes in use at a time."""
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """Beyond what the program uses already."""
        return self.peak - self.parts["program"]

    @property
    def room(self) -> int:
        """Bytes that may be counted on: a tenth of what is free is left to others, and to our error."""
        return int(0.9 * self.free)

    @property
    def fits(self) -> bool:
        """Is there room for it?"""
        return self.needed <= self.room

    def record(self) -> dict[str, Any]:
        """As it stands in result.json."""
        return {"device": self.device, "bytes": self.peak, "parts": self.parts, "seconds": self.seconds}


def load_of(
    lengths: Sequence[int], learned: Sequence[int], config: TrainConfig, steps: int, *, pack: int | None, seed: int
) -> Load:
    """Looks at the steps of the first epoch, as training cuts them."""
    tokens = targets = passes = 0
    looked = max(1, min(steps, SAMPLE, -(-len(lengths) // config.batch_size)))
    most, largest, at, longest = 0, [lengths[0]], learned[0], max(lengths)
    shapes: set[tuple[int, int]] = set()
    for index in range(looked):
        rows = step_numbers(len(lengths), index, batch_size=config.batch_size, seed=seed)
        for micro in micro_batches(
            [lengths[row] for row in rows],
            micro_batch=config.rows_per_pass,
            by_length=config.group_by_length,
            micro_tokens=config.micro_tokens,
            pack=pack,
        ):
            sizes = [lengths[rows[i]] for i in micro]
            size = sum(sizes) if pack else len(sizes) * max(sizes)
            own = sum(learned[rows[i]] for i in micro)
            shapes.add((1, -(-size // EVEN)) if pack else (len(sizes), even_length(max(sizes), longest)))
            tokens, targets, passes = tokens + size, targets + own, passes + 1
            if size > most:
                most, largest, at = size, sizes, own
    return Load(steps, tokens / looked, targets / looked, passes / looked, largest, at, len(shapes))


def plan(
    model: ModelConfig,
    method: Method,
    train: TrainConfig,
    source: str,
    load: Load,
    *,
    precision: str,
    labels: tuple[str, ...] | None,
    packed: bool,
    other: machine.TargetMachine | None = None,
) -> Plan:
    """From config.json alone: no weights are read, and nothing large is held.

    For the `other` machine, where there is one, in bytes and operations; its seconds are this one's.
    """
    where = device(model)
    whole = skeleton(model, source, labels=labels)
    config = whole.config
    quantize = quantization(model, config)
    stored = _dtype(model, where, config)
    autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    computed = autocast or stored
    tuned = method.attach(whole, steps=load.steps, classify=labels is not None)
    trained = [p for p in tuned.parameters() if p.requires_grad]
    taken = _trace(tuned, model, method, train, source, load, stored, autocast, where, labels, packed)
    head, width = _head(tuned, labels)
    weights = _weights(tuned, quantize, stored)
    step = _products(load, taken, head, packed=packed)
    seconds = load.steps * _seconds(step, load, taken, where, computed, packed=packed)
    logits = _logits(config, load, head, width, computed)
    grown = sum(4 * p.numel() for p in trained)
    # With several passes a step gradients are there all the time, else they grow while activations go.
    held = 0 if load.passes > 1 else grown
    at_most = max(taken.forward_peak, taken.backward_peak, taken.kept + logits)
    activations = max(taken.forward_peak, taken.backward_peak, taken.kept)
    held_by = other.device if other else where
    on_card = other is not None and other.device != "cpu"
    parts = {
        "program": 0 if on_card else machine.used(where),  # by now with all that planning itself has loaded
        "weights": weights,
        "trained weights": grown,
        "gradients": grown,
        "optimizer": sum(_state(p, train.optimizer) for p in trained),
        "activations": round(max(0.0, activations - held) * HOLDS.get(held_by, 1.0)),
        "logits": round((at_most - activations) * HOLDS.get(held_by, 1.0)),
        # MKL, for float32, compiles none.
        "kernels": load.shapes * KERNELS.get(held_by, 0) if computed.itemsize == 2 else 0,
    }
    parts["activations"] += _unpacked(tuned, quantize, computed)
    total, free = (other.memory, other.memory - parts["program"]) if other else machine.memory(where)
    return Plan(held_by, parts, seconds, total, free, _tokens(load, packed=packed), load.steps * step)


def fewest(tuned: nn.Module, model: ModelConfig, train: TrainConfig) -> int:
    """Bytes that a run needs at least: weights, gradients and optimizer, before any activation. Traces nothing."""
    config: Any = tuned.config
    trained = [p for p in tuned.parameters() if p.requires_grad]
    weights = _weights(tuned, quantization(model, config), _dtype(model, device(model), config))
    return weights + sum(8 * p.numel() + _state(p, train.optimizer) for p in trained)


def _share(load: Load, *, packed: bool) -> float:
    """Of the traced pass, in a step."""
    return load.tokens / _tokens(load, packed=packed)


def _products(load: Load, taken: Trace, head: int, *, packed: bool) -> float:
    """Floating-point operations of a step's matrix products."""
    return taken.flops * _share(load, packed=packed) + 4 * load.targets * head


def _seconds(products: float, load: Load, taken: Trace, where: str, computed: torch.dtype, *, packed: bool) -> float:
    """Of a step."""
    rates = machine.speed(where, computed)
    moved = taken.moved * _share(load, packed=packed)
    return products / rates.products + moved / rates.moves + taken.calls * load.passes * rates.call


def _tokens(load: Load, *, packed: bool) -> int:
    """Of the largest pass, padding counted."""
    return sum(load.largest) if packed else len(load.largest) * max(load.largest)


def _trace(
    tuned: nn.Module,
    model: ModelConfig,
    method: Method,
    train: TrainConfig,
    source: str,
    load: Load,
    stored: torch.dtype,
    autocast: torch.dtype | None,
    where: str,
    labels: tuple[str, ...] | None,
    packed: bool,
) -> Trace:
    """Of the largest pass, by one and two layers where all layers are alike."""

    def of(layers: int | None) -> Trace:
        made = skeleton(model, source, labels=labels, layers=layers)
        some = method.attach(made, steps=load.steps, classify=labels is not None).train()
        for part in some.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # its masks are no part of what is traced
        if train.gradient_checkpointing is True:
            some.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        return trace(
            some,
            load.largest,
            dtype=stored,
            autocast=autocast,
            device=where,
            packed=packed,
            classify=labels is not None,
            again=load.passes > 1,
            compile=train.compile,
        )

    number = _layers(tuned.config)
    if number is None or number <= 3 or not _alike(tuned, number):
        return of(None)
    one = of(1)
    return one.grown(of(2), number - 1)


def _alike(tuned: nn.Module, number: int) -> bool:
    """Does the same number of parameters train in each layer?"""
    trained: dict[str, int] = {}
    for name, parameter in tuned.named_parameters():
        place = re.search(r"\.(\d+)\.", name)
        if place and parameter.requires_grad:
            trained[place[1]] = trained.get(place[1], 0) + parameter.numel()
    return not trained or (len(trained) == number and len(set(trained.values())) == 1)


def _layers(config: Any) -> int | None:
    """Number of layers, where they are all there is to it."""
    return None if getattr(config, "is_encoder_decoder", False) else getattr(config, "num_hidden_layers", None)


def _dtype(model: ModelConfig, where: str, config: Any) -> torch.dtype:
    """Type of the frozen weights in memory."""
    if model.dtype != "auto":
        return getattr(torch, model.dtype)  # type: ignore[no-any-return]
    stored = getattr(config, "dtype", None)
    return torch.float32 if where == "cpu" or model.init == "random" or stored is None else stored


def _head(tuned: Any, labels: tuple[str, ...] | None) -> tuple[int, int]:
    """(weights of the layer that makes logits, its outputs)."""
    head = None if labels is not None else tuned.get_output_embeddings()
    return (0, 0) if head is None else (head.weight.numel(), head.weight.shape[0])


def _logits(config: Any, load: Load, head: int, width: int, computed: torch.dtype) -> float:
    """Bytes of logits and what becomes of them, beyond the activations kept at that time."""
    if not head:
        return 0
    hidden = head // width
    selected = load.learned * hidden * (2 * computed.itemsize + 4)
    if any(getattr(config, key, None) for key in ("final_logit_softcapping", "logit_scale", "logits_scaling")):
        return selected + load.learned * width * (computed.itemsize + 12)  # made whole, and once more as slopes
    rows = min(load.learned, max(FEWEST, CHUNK_BYTES // (computed.itemsize * width)))
    return selected + rows * width * computed.itemsize + 2 * SLICE_BYTES


def _weights(tuned: nn.Module, quantize: str, stored: torch.dtype) -> int:
    """Bytes of the frozen weights, packed where the recipe packs them."""
    packed = {id(layer.weight): layer.weight.numel() for layer in _packed_layers(tuned, quantize)}
    frozen = {id(p): p.numel() for p in tuned.parameters() if not p.requires_grad}
    plain = sum(number for key, number in frozen.items() if key not in packed)
    share = {"none": 0.0, "int8": 1.0}.get(quantize, 0.5 + 1 / 62)
    # 4 bit and a byte of scale for each 64 (its own scales add a 64th of that); int8 has a float for each output.
    return int(plain * stored.itemsize + sum(packed.values()) * share)


def _packed_layers(tuned: Any, quantize: str) -> list[Any]:
    if quantize == "none":
        return []
    output = tuned.get_output_embeddings() if hasattr(tuned, "get_output_embeddings") else None
    return [
        layer
        for name, layer in tuned.named_modules()
        if isinstance(layer, nn.Linear) and layer is not output and not layer.weight.requires_grad and not in_head(name)
    ]


def _unpacked(tuned: nn.Module, quantize: str, computed: torch.dtype) -> int:
    """Bytes of the largest packed layer, which is unpacked while it is used."""
    sizes = [layer.weight.numel() for layer in _packed_layers(tuned, quantize)]
    return max(sizes, default=0) * computed.itemsize


def _state(parameter: nn.Parameter, optimizer: str) -> int:
    """Bytes of the optimizer's state for one parameter."""
    if optimizer == "adafactor":
        return 4 * (int(sum(parameter.shape[-2:])) if parameter.ndim > 1 else int(parameter.numel()))
    small = optimizer.endswith("8bit") and parameter.numel() < 4096  # bitsandbytes leaves those whole
    return int(parameter.numel()) * (8 if small else OPTIMIZER[optimizer])
