"""Memory, traffic and time of one process of several: replicated (DDP), sharded (FSDP2) or both. Numbers in and out.

docs/scale.md has every formula, and holds them against published figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log, sqrt
from typing import Any, Literal, NamedTuple, TypeAlias

from luthier.data.batches import dealt, step_numbers
from luthier.planning.devices import Cluster

PRODUCTS, MOVES = 0.8, 0.8
"""What the operations of a pass reach: of the best matrix product measured on the device, and of its memory's rate."""
SPREAD = 0.02
"""Standard deviation of the speed of devices of one type: 5 % and more lie between the fastest and the slowest of the
eight of a node (ml-engineering, compute/accelerator). All wait for the slowest."""
CALL = 10e-6
"""Seconds in which Python and autograd hand one operation to a device."""
CONTEXT = 1_000_000_000
"""Bytes of the CUDA context, the workspaces of cuBLAS and the buffers of NCCL."""
BUCKET = 2**25
"""Bytes of gradients that replicas sum at a time."""
GRADIENT = 4
"""Bytes of a gradient's number: it is summed in float32."""
Parallel: TypeAlias = Literal["ddp", "fsdp", "hsdp"]
"""Replicated, sharded over all devices, or sharded within each node and replicated across nodes."""


class Units(NamedTuple):
    """What FSDP gathers at a time: each layer, and all that is outside of layers."""

    layers: int
    layer: int
    """Bytes of the base's weights in the largest layer, as they are gathered."""
    rest: int
    """Bytes of the base's weights outside of layers."""
    layer_trained: int
    """Trained parameters of the layer with most of them."""
    trained: int
    """Trained parameters of all."""
    adapter: bool = False
    """What trains is an adapter: every device has it whole, and its gradients are summed as in DDP."""
    offload: bool = False
    """What is sharded lies in host memory."""


@dataclass(frozen=True, slots=True)
class RankWork:
    """What one process computes in a step, and holds where nothing is sharded."""

    held: dict[str, int]
    """Bytes of weights, trained weights, gradients and optimizer."""
    passing: dict[str, int]
    """Bytes of what a pass adds: activations and logits."""
    passes: float
    """Forward passes of a step."""
    flops: float
    """Floating-point operations of a step's matrix products."""
    forward: float
    """Those of its forward passes alone."""
    again: float
    """Those that gradient checkpointing repeats."""
    moved: float
    """Bytes that all other operations of a step read and write."""
    calls: float
    """Operations of a step."""
    units: Units
    tokens: float
    """Tokens of a step on all devices, without padding."""
    skew: float
    """Tokens of the slowest process over those of a mean one."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A run on a cluster in one way."""

    parallel: Parallel
    shards: int
    """Devices over which each weight is sharded."""
    parts: dict[str, int]
    """Bytes of one device by component."""
    traffic: dict[str, float]
    """Bytes that one device sends in a step, by collective."""
    compute: float
    """Seconds of a step that the slowest device computes."""
    waiting: float
    """Seconds of a step in which it only communicates."""
    tokens: float
    """Tokens of a step on all devices, without padding."""
    flops: float
    """Floating-point operations a second of one device that the model needs: nothing that is repeated counts."""
    peak: float
    """Those of its data sheet."""

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return self.compute + self.waiting

    def record(self, ranks: int) -> dict[str, Any]:
        """The layout in result.json and for programs; seconds are those of a step."""
        speed = self.tokens / self.seconds
        return {
            "parallel": self.parallel,
            "shards": self.shards,
            "bytes": sum(self.parts.values()),
            "parts": self.parts,
            "traffic": {name: round(size) for name, size in self.traffic.items()},
            "step_seconds": self.seconds,
            "waiting_seconds": self.waiting,
            "tokens_per_second": speed,
            "tokens_per_second_per_device": speed / ranks,
            "tflops_per_device": self.flops / 1e12,
            "utilization": self.flops / self.peak,
        }


def skew_of(lengths: Sequence[int], batch_size: int, ranks: int, seed: int) -> float:
    """Tokens of the slowest process over those of a mean one: the mean of the first epoch's first 50 steps.

    Rows are dealt out as in training.
    """
    share, mean = ceil(batch_size / ranks), sum(lengths) / len(lengths)
    steps = range(min(50, ceil(len(lengths) / batch_size)))
    most = 0
    for index in steps:
        step = [lengths[row] for row in step_numbers(len(lengths), index, batch_size=batch_size, seed=seed)]
        most += max(sum(step[row] for row in share) for share in dealt(step, ranks))
    return most / len(steps) / (share * mean)


def ddp(work: RankWork, cluster: Cluster) -> Layout:
    """Every device holds everything; behind the last pass of a step the gradients are summed over all."""
    size = GRADIENT * work.units.trained
    buckets = ceil(size / BUCKET)
    waiting = buckets * cluster.reduce(size / buckets, cluster.per_node, cluster.nodes)
    traffic = {"all-reduce": 2 * (cluster.ranks - 1) / cluster.ranks * size}
    return _layout("ddp", 1, work.held, traffic, _Times.of(work, cluster, 1), waiting, work, cluster)


def fsdp(work: RankWork, cluster: Cluster, *, within_node: bool = False) -> Layout:
    """Weights, gradients and optimizer are sharded, over all devices or `within_node` (and replicated across nodes).

    Layers are gathered while the one before computes, in the forward pass and once more in the backward pass; their
    gradients are scattered while the next computes.
    """
    nodes = 1 if within_node else cluster.nodes
    group, shards = (cluster.per_node, nodes), cluster.per_node * nodes
    replicas, units, time = cluster.ranks // shards, work.units, _Times.of(work, cluster, shards)
    gather, gather_rest = cluster.gather(units.layer, *group), cluster.gather(units.rest, *group)
    gradient = 0 if units.adapter else GRADIENT * units.layer_trained
    scatter = (
        0.0 if units.adapter else cluster.gather(gradient, *group) + cluster.reduce(gradient / shards, 1, replicas)
    )
    pieces = units.trained / max(1, units.layer_trained)  # what is trained outside of layers counts as more of them
    late = max(0.0, (units.layers - 1) * gather - time.forward)
    late += max(0.0, units.layers * gather + pieces * scatter - time.backward)
    # Nothing computes while the first layer is gathered, and the gradient of the last is scattered.
    waiting = work.passes * (gather_rest + gather + late) + scatter
    others, all_trained = (shards - 1) / shards, GRADIENT * units.trained
    traffic = {"all-gather": work.passes * others * (2 * units.layers * units.layer + units.rest)}
    if units.adapter:
        own = ddp(work, cluster)
        waiting, traffic = waiting + own.waiting, traffic | own.traffic
    else:
        traffic["reduce-scatter"] = work.passes * others * all_trained
        traffic["all-reduce"] = work.passes * 2 * (replicas - 1) / replicas * all_trained / shards
    sharded = {"weights"} if units.adapter else work.held.keys()
    part = 0 if units.offload else 1 / shards
    parts = {name: ceil(size * part) if name in sharded else size for name, size in work.held.items()}
    # The layer at work and the next one, and a layer's gradient before and while it is scattered. What is outside of
    # layers stays from the forward pass to the backward pass.
    parts["gathered layers"] = 2 * units.layer + units.rest + 2 * gradient
    return _layout("hsdp" if within_node else "fsdp", shards, parts, traffic, time, waiting, work, cluster)


class _Times(NamedTuple):
    """Seconds that the slowest device computes: in the passes of one micro-batch, and in the optimizer's step."""

    forward: float
    backward: float
    step: float

    @classmethod
    def of(cls, work: RankWork, cluster: Cluster, shards: int) -> "_Times":
        device, held = cluster.device, work.held
        rate = MOVES * device.bandwidth
        both = work.flops / (PRODUCTS * device.matmul) + work.moved / rate
        slowest = work.skew * (1 + SPREAD * sqrt(2 * log(cluster.ranks)))  # of many normally distributed
        both = slowest * max(both, CALL * work.calls) / work.passes
        forward = both * work.forward / work.flops
        # Clipping and the optimizer read gradients twice and write them once, and read and write all the rest.
        stepped = 2 * (held["trained weights"] + held["optimizer"]) + 3 * held["gradients"]
        return cls(forward, both - forward, stepped / shards / rate)


def _layout(
    parallel: Parallel,
    shards: int,
    parts: dict[str, int],
    traffic: dict[str, float],
    time: _Times,
    waiting: float,
    work: RankWork,
    cluster: Cluster,
) -> Layout:
    compute = work.passes * (time.forward + time.backward) + time.step
    used = (work.flops - work.again) / (compute + waiting)
    sent = {name: size for name, size in traffic.items() if size}
    parts = {"program": CONTEXT, **parts, **work.passing}
    return Layout(parallel, shards, parts, sent, compute, waiting, work.tokens, used, cluster.device.peak)
