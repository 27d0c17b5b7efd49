"""The plan of a run: bytes by component, seconds, and what would make it fit."""

import copy
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import nn

from luthier.data.batches import micro_batches, step_numbers
from luthier.kernels.apply import checkpoint_layers
from luthier.kernels.cross_entropy import CHUNK_BYTES, FEWEST, SLICE_BYTES
from luthier.methods.base import Method, Model
from luthier.models.load import Classes, device, quantization, skeleton
from luthier.models.settings import ModelConfig
from luthier.models.targets import in_head
from luthier.planning import machine
from luthier.planning.devices import Cluster
from luthier.planning.parallel import Layout, Parallel, RankWork, Units, ddp, fsdp, skew_of
from luthier.planning.tracing import Trace, trace
from luthier.rendering.row import EVEN, even_length
from luthier.tasks.base import Task
from luthier.training.optimizers.base import OPTIMIZERS
from luthier.training.settings import TrainConfig

SAMPLE = 400
"""Most steps of the first epoch that are looked at."""
LAYER = re.compile(r"\.(\d+)\.")
"""The number of a layer in the name of what lies in it."""
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

HOLDS = {"cpu": 1.3}
"""Bytes that a process holds for each byte that is alive at the peak: glibc's allocator fragments."""
LOGIT_BYTES = 32
"""Bytes that a GPU reads and writes for each logit, from the head's product to its gradient (kernels.cross_entropy)."""
KERNELS = {"cpu": 26_000_000}
"""Bytes of the kernels that oneDNN compiles and keeps for each size of a pass in half precision.

With these two a plan was 3 % off at most on Qwen2-0.5B's shape with 2 and 24 layers and on the embedded base, packed
and padded, with half of a row learned and two tokens of it (benchmarks/training says it of each run).
"""


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """What is to be trained, and on what."""

    model: ModelConfig
    method: Method
    train: TrainConfig
    """Its precision is decided."""
    task: Task
    tuned: nn.Module
    """The base with the method on it (see `tuned_skeleton`)."""
    source: str
    """Folder or hub id of the base."""
    lengths: Sequence[int]
    """Tokens of each row; for a stream one row of the largest length."""
    learned: Sequence[int]
    """Targets of each row."""
    steps: int
    labels: Classes
    seed: int
    other: machine.TargetMachine | None = None
    """The machine that it is to run on, if not this one."""
    cluster: Cluster | None = None
    """The devices that it is to run on, if not one of this machine."""
    parallel: Parallel = "ddp"
    """How they share the work."""

    @property
    def device(self) -> str:
        """cuda, mps or cpu: where the run is to train."""
        return "cuda" if self.cluster else device(self.model)

    @property
    def rows(self) -> int:
        """Rows of a step on one device."""
        return ceil(self.train.batch_size / (self.cluster.ranks if self.cluster else 1))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of a run; tokens, targets and passes are means per step."""

    tokens: float
    """Tokens, padding included."""
    targets: float
    passes: float
    largest: list[int]
    """Lengths of the rows of the pass with the most tokens."""
    learned: int
    """Targets of that pass."""
    shapes: int = 1
    """Distinct sizes among the passes."""
    packed: bool = False

    @property
    def most(self) -> int:
        """Tokens of the largest pass, padding included."""
        return sum(self.largest) if self.packed else len(self.largest) * max(self.largest)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will need, before it begins."""

    target: machine.TargetMachine
    parts: dict[str, int]
    """Bytes by component: program, weights, trained weights, gradients, optimizer, activations, logits, kernels."""
    seconds: float
    """Training time of all steps in seconds."""
    tokens: int
    """Tokens of the largest pass, padding included."""
    flops: float = 0.0
    """Floating-point operations of the matrix products of all steps."""
    layout: Layout | None = None
    """On several devices, of which this is one."""

    @property
    def peak(self) -> int:
        """Peak bytes in use."""
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """Bytes beyond what the program uses already."""
        return self.peak - self.parts["program"]

    @property
    def fits(self) -> bool:
        """Whether there is memory for it."""
        return self.needed <= self.target.room

    def record(self) -> dict[str, Any]:
        """The plan in result.json."""
        return {"device": self.target.device, "bytes": self.peak, "parts": self.parts, "seconds": self.seconds}


def tuned_skeleton(
    model: ModelConfig, method: Method, source: str, labels: Classes, steps: int = 1000, layers: int | None = None
) -> Model:
    """The base with the method on it on the meta device, or its first `layers` only: shapes, no weights, no memory.

    InputError where the base or the method cannot serve.
    """
    whole = skeleton(model, source, labels=labels, layers=layers)
    return method.check(whole, classify=labels is not None, quantize=quantization(model, whole.config), steps=steps)


def workload_of(inputs: PlanInputs, pack: int | None) -> Workload:
    """The workload of the first epoch's steps, cut as training cuts them; `pack` is the tokens of a packed sequence.

    On a cluster that of one device, whose steps have fewer rows.
    """
    lengths, learned, config, longest = inputs.lengths, inputs.learned, inputs.train, inputs.longest
    looked = max(1, min(inputs.steps, SAMPLE, ceil(len(lengths) / inputs.rows)))
    passes: list[tuple[int, list[int], int]] = []  # tokens with padding, lengths of the rows, targets
    for index in range(looked):
        rows = step_numbers(len(lengths), index, batch_size=inputs.rows, seed=inputs.seed)
        for micro in micro_batches(
            [lengths[row] for row in rows],
            micro_batch=config.rows_per_pass,
            by_length=config.group_by_length,
            micro_tokens=config.micro_tokens,
            pack=pack,
        ):
            sizes = [lengths[rows[i]] for i in micro]
            size = sum(sizes) if pack else len(sizes) * max(sizes)
            passes.append((size, sizes, sum(learned[rows[i]] for i in micro)))
    _, largest, targets = max(passes, key=lambda each: each[0])
    means = sum(each[0] for each in passes) / looked, sum(each[2] for each in passes) / looked, len(passes) / looked
    shapes = {
        (1, -(-size // EVEN)) if pack else (len(sizes), even_length(max(sizes), longest)) for size, sizes, _ in passes
    }
    return Workload(*means, largest, targets, len(shapes), pack is not None)


def estimate(inputs: PlanInputs, work: Workload) -> Plan:
    """Plan a run from config.json alone: no weights are read, and nothing large is held.

    Bytes and operations are those of the other machine, where there is one; seconds are always this machine's. On a
    cluster all are those of one of its devices.
    """
    model, other, where = inputs.model, inputs.other, inputs.device
    tuned: Any = inputs.tuned
    stored = _dtype(model, tuned.config)
    autocast = AUTOCAST[inputs.train.precision]
    computed = autocast or stored
    # FSDP gathers in half precision what trains in float32, where DDP has autocast copy it.
    halves = autocast is not None and inputs.parallel != "ddp" and inputs.method.saves == "model"
    traced = _trace(inputs, work, stored, autocast, autocast if halves else None)
    gathered = 2 if halves else 4
    held = held_bytes(tuned, model, inputs.train)
    head = None if inputs.labels is not None else tuned.get_output_embeddings()
    share = work.tokens / work.most  # of the traced pass, in a step
    vocabulary, head_size = (0, 0) if head is None else (len(head.weight), head.weight.numel())
    # A head that trains makes its logits once more, for a gradient of its own.
    heads = (8 if head is not None and head.weight.requires_grad else 4) * work.targets * head_size
    again = inputs.train.gradient_checkpointing is True
    activations = max(traced.forward_peak, traced.backward_peak, traced.kept)
    logits = max(0.0, traced.kept + _logits(tuned.config, work, head, computed) - activations)
    packed = [layer.weight.numel() for layer in _packed_layers(tuned, model)]
    unpacked = max(packed, default=0) * computed.itemsize  # the largest packed layer, while it is used
    flops, moved, calls = traced.flops * share + heads, traced.moved * share, traced.calls * work.passes
    if inputs.cluster is not None:
        times = 3 if again else 2  # that a packed layer is unpacked in a pass
        rank = RankWork(
            held=held,
            passing={"activations": round(activations) + unpacked, "logits": round(logits)},
            passes=work.passes,
            flops=flops,
            forward=traced.forward * share + heads / 2,
            again=traced.forward * share if again else 0.0,
            moved=moved
            + times * work.passes * (computed.itemsize + 0.5) * sum(packed)
            + LOGIT_BYTES * work.targets * vocabulary,
            calls=calls,
            units=units_of(inputs, stored.itemsize, gathered),
            tokens=inputs.train.batch_size * sum(inputs.lengths) / len(inputs.lengths),
            skew=skew_of(inputs.lengths, inputs.train.batch_size, inputs.cluster.ranks, inputs.seed),
        )
        return _on_cluster(inputs, inputs.cluster, rank, work)
    # With several passes a step gradients are there all the time, else they grow while activations go.
    growing = 0 if work.passes > 1 else held["gradients"]
    held_by = other.device if other else where
    factor = HOLDS.get(held_by, 1.0)
    rates = machine.speed(where, computed)
    seconds = flops / rates.products + moved / rates.moves + calls * rates.call
    parts = {
        # By now with all that planning itself has loaded.
        "program": 0 if other is not None and other.device != "cpu" else machine.used(where),
        **held,
        "activations": round(max(0.0, activations - growing) * factor) + unpacked,
        "logits": round(logits * factor),
        # MKL, for float32, compiles none.
        "kernels": work.shapes * KERNELS.get(held_by, 0) if computed.itemsize == 2 else 0,
    }
    target = replace(other, free=other.memory - parts["program"]) if other else machine.this_machine(where)
    return Plan(target, parts, inputs.steps * seconds, work.most, inputs.steps * flops)


def _on_cluster(inputs: PlanInputs, cluster: Cluster, rank: RankWork, work: Workload) -> Plan:
    """The plan of one device of a cluster."""
    replicated, within_node = inputs.parallel == "ddp", inputs.parallel == "hsdp"
    layout = ddp(rank, cluster) if replicated else fsdp(rank, cluster, within_node=within_node)
    memory = cluster.device.memory
    target = machine.TargetMachine(cluster.name, memory, memory - layout.parts["program"])
    flops = inputs.steps * cluster.ranks * rank.flops
    return Plan(target, layout.parts, inputs.steps * layout.seconds, work.most, flops, layout)


def units_of(inputs: PlanInputs, stored: int, gathered: int) -> Units:
    """What FSDP gathers: a number of a frozen weight takes `stored` bytes, one of the base that trains `gathered`."""
    layers: Counter[str] = Counter()  # number of a layer -> bytes
    trained: Counter[str] = Counter()
    adapter = inputs.method.saves == "adapter"
    for name, parameter in inputs.tuned.named_parameters():  # shared ones once
        place = LAYER.search(name)
        layer = place[1] if place else ""
        size = stored if not parameter.requires_grad else 0 if adapter else gathered
        layers[layer] += parameter.numel() * size
        trained[layer] += parameter.numel() * parameter.requires_grad
    rest = layers.pop("", 0)
    whole = sum(trained.values())
    trained.pop("", 0)
    largest, most = max(layers.values(), default=0), max(trained.values(), default=0)
    return Units(len(layers), largest, rest, most, whole, adapter, inputs.train.offload)


def held_bytes(tuned: nn.Module, model: ModelConfig, train: TrainConfig) -> dict[str, int]:
    """Bytes that a run holds from its first step on, before any activation: from shapes, nothing is traced."""
    packed = {id(layer.weight): layer.weight.numel() for layer in _packed_layers(tuned, model)}
    plain = sum(p.numel() for p in tuned.parameters() if not p.requires_grad and id(p) not in packed)
    # 4 bit and a byte of scale for each 64 (its own scales add a 64th of that); int8 has a float for each output.
    share = 1.0 if quantization(model, tuned.config) == "int8" else 0.5 + 1 / 62
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS.parse(train.optimizer)
    return {
        "weights": int(plain * _dtype(model, tuned.config).itemsize + sum(packed.values()) * share),
        "trained weights": 4 * sum(p.numel() for p in trained),
        "gradients": 4 * sum(p.numel() for p in trained),
        "optimizer": sum(optimizer.state_bytes(parameter) for parameter in trained),
    }


def _trace(
    inputs: PlanInputs,
    work: Workload,
    stored: torch.dtype,
    autocast: torch.dtype | None,
    gathered: torch.dtype | None,
) -> Trace:
    """Trace the largest pass: by copies with one and two layers where all layers are alike.

    Weights that train have the type `gathered`, where it is given.
    """
    config: Any = inputs.tuned.config
    number = None if getattr(config, "is_encoder_decoder", False) else getattr(config, "num_hidden_layers", None)

    def of(layers: int | None) -> Trace:
        model: Any = copy.deepcopy(inputs.tuned).train()
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # its masks are not traced
            if layers and isinstance(module, nn.ModuleList) and len(module) == number and not LAYER.search(name):
                del module[layers:]
        if layers:
            model.config.num_hidden_layers = layers
        if inputs.train.gradient_checkpointing is True:
            checkpoint_layers(model, preserve_rng_state=False)
        return trace(
            model,
            lengths,
            dtype=stored,
            trained=gathered,
            autocast=autocast,
            device=device(inputs.model),
            packed=packed,
            classify=inputs.labels is not None,
            again=work.passes > 1 or inputs.cluster is not None,
            compile=inputs.train.compile,
            undivided=inputs.cluster is not None,
        )

    lengths, packed = work.largest, work.packed
    if inputs.cluster and packed:
        # Its kernel for packed rows cannot be tried here: as many rows, all of one length, take the same operations.
        length = sum(length * length for length in lengths) / sum(lengths)
        rows = max(1, round(sum(lengths) / length))
        lengths, packed = [round(sum(lengths) / rows)] * rows, False
    trained: Counter[str] = Counter()  # number of a layer -> its parameters that train
    for name, parameter in inputs.tuned.named_parameters():
        place = LAYER.search(name)
        if place and parameter.requires_grad:
            trained[place[1]] += parameter.numel()
    alike = not trained or (len(trained) == number and len(set(trained.values())) == 1)
    if number is None or number <= 3 or not alike:
        return of(None)
    one = of(1)
    return one.grown(of(2), number - 1)


def _dtype(model: ModelConfig, config: Any) -> torch.dtype:
    """Type of the frozen weights in memory."""
    if model.dtype != "auto":
        return getattr(torch, model.dtype)  # type: ignore[no-any-return]
    stored = getattr(config, "dtype", None)
    return torch.float32 if device(model) == "cpu" or model.init == "random" or stored is None else stored


def _logits(config: Any, work: Workload, head: Any, computed: torch.dtype) -> float:
    """Bytes of logits and their gradients, beyond the activations kept at that time."""
    if head is None:
        return 0
    width, hidden = map(int, head.weight.shape)
    selected = work.learned * hidden * (2 * computed.itemsize + 4)
    if any(getattr(config, key, None) for key in ("final_logit_softcapping", "logit_scale", "logits_scaling")):
        return selected + work.learned * width * (computed.itemsize + 12)  # made whole, and once more as gradients
    rows = min(work.learned, max(FEWEST, CHUNK_BYTES // (computed.itemsize * width)))
    return selected + rows * width * computed.itemsize + 2 * SLICE_BYTES


def _packed_layers(tuned: Any, model: ModelConfig) -> list[Any]:
    """The linear layers that are quantized when the base is loaded."""
    if quantization(model, tuned.config) == "none":
        return []
    output = tuned.get_output_embeddings() if hasattr(tuned, "get_output_embeddings") else None
    return [
        layer
        for name, layer in tuned.named_modules()
        if isinstance(layer, nn.Linear) and layer is not output and not layer.weight.requires_grad and not in_head(name)
    ]
