"""A model whose weights are divided among the ranks: FSDP2, torch's `fully_shard`.

Each rank keeps 1/n of every weight of the base, with its gradient and optimizer states where it trains; those of an
adapter are small and whole on each rank. The weights of a layer are gathered before it computes and let go behind it.
So no rank ever holds the whole model, but rank 0, in host memory, while it hands the weights out (Zhao et al. 2023,
arXiv 2304.11277; FSDP2 as in torch 2.13).
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from luthier.core.errors import InputError
from luthier.core.ranks import Ranks, here
from luthier.kernels.apply import repeated_blocks

ROOM = 0.5
"""Share of the free memory of a device that all weights may take, to be held whole for an evaluation."""
NONE = 2**31
"""No chain of layers."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a model is divided."""

    device: str
    """cpu or cuda."""
    shards: int
    """Neighboring ranks among which each weight is divided; other groups of as many hold the same again (HSDP)."""
    half: torch.dtype | None = None
    """Type in which weights are gathered to compute, where it is not their own; gradients are summed in float32."""
    offload: bool = False
    """Weights, gradients and optimizer states lie in host memory; those of a layer come to the device to compute."""


def shard(model: nn.Module, how: Sharding, whole: frozenset[str] = frozenset()) -> None:
    """Divide the weights of `model` among the ranks, in place, and hand out those that rank 0 has. Call it on all.

    On other ranks weights may be on the meta device. Parameters named in `whole` are not divided, nor are buffers.
    """
    ranks, device = here(), torch.device(how.device)
    if how.device == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    types = _agree_on_types(model, ranks)
    given = {name: value.detach() for name, value in _tensors(model)} if ranks.leads else {}
    for name, value in _tensors(model):
        if name in whole or not isinstance(value, nn.Parameter):
            _place(value, types[name], device)
    kept = {value for name, value in model.named_parameters() if name in whole}
    named = {value: name for name, value in model.named_parameters()}
    precision = MixedPrecisionPolicy(how.half, torch.float32 if how.half else None, cast_forward_inputs=False)
    offload = CPUOffloadPolicy(pin_memory=how.device == "cuda") if how.offload else OffloadPolicy()
    mesh, blocks = _mesh(how, ranks), list[Any]([*repeated_blocks(model), model])
    for block in blocks:
        for value in block.parameters():
            if not ranks.leads and value in named and value not in kept:
                _place(value, types[named[value]], device)
        fully_shard(block, mesh=mesh, mp_policy=precision, offload_policy=offload, ignored_params=kept)
        # Losses are sums, divided once by the targets of the whole step: gradients are to be summed, not averaged.
        block.set_gradient_divide_factor(1.0)
        block.set_force_sum_reduction_for_comms(True)  # gloo has no sum that multiplies first
    # Nothing here writes into an output in place.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor", UserWarning)
    # The first module that runs would take itself for the root, and `generate` calls the base inside of PEFT's model.
    fully_shard.state(model)._lazy_init()  # type: ignore[attr-defined]
    for name, value in _tensors(model):
        _hand_out(given.pop(name, None), value, device)


def divided_copy(model: nn.Module, how: Sharding) -> nn.Module:
    """A copy of `model` that `shard` divided; the model itself keeps its weights, and they are not copied."""
    shared = {id(value): value.detach() for value in model.buffers()}
    shared |= {id(value): nn.Parameter(value.detach(), value.requires_grad) for value in model.parameters()}
    copied = copy.deepcopy(model, shared)
    shard(copied, how)
    return copied


def _mesh(how: Sharding, ranks: Ranks) -> DeviceMesh:
    if how.shards == ranks.world:
        return init_device_mesh(how.device, (ranks.world,))
    sizes = ranks.world // how.shards, how.shards
    return init_device_mesh(how.device, sizes, mesh_dim_names=("replicas", "shards"))


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """All tensors by name: parameters, buffers, and what a module keeps beside them, as PEFT's `prompt_tokens`."""
    found: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            beside = value if isinstance(value, dict) and not key.startswith("_") else {"": value}
            found += [(f"{name}.{key}.{inner}", each) for inner, each in beside.items() if isinstance(each, Tensor)]
    return found


def _agree_on_types(model: nn.Module, ranks: Ranks) -> dict[str, torch.dtype]:
    """The type of each tensor on rank 0, which may keep some in float32 where others were built in half precision."""
    types = {name: value.dtype for name, value in _tensors(model)}
    given: dict[str, torch.dtype] = ranks.told(types)
    if odd := sorted(types.keys() ^ given.keys()):
        raise InputError(f"{ranks.name(ranks.rank)} built another model than rank 0: {odd[0]}", fix="the same versions")
    return given


def _place(value: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Move a tensor to the device, in place; room for one that is on the meta device."""
    if not value.is_meta:
        value.data = value.data.to(device, dtype)
        return
    made = torch.empty(value.shape, dtype=dtype, device=device)
    # In place, so that whatever else refers to it (tied weights, a layer's own list) has it too.
    parameter = isinstance(value, nn.Parameter)
    swap: Any = torch.utils.swap_tensors
    swap(value, nn.Parameter(made, value.requires_grad) if parameter else made)


def _hand_out(given: Tensor | None, value: Tensor, device: torch.device) -> None:
    """Let `value`, of which each rank has its part, be what rank 0 was `given`."""
    held = value.detach()
    whole = torch.empty(value.shape, dtype=value.dtype, device=device) if given is None else given.to(device)
    if isinstance(held, DTensor):
        held.to_local().copy_(distribute_tensor(whole, held.device_mesh, held.placements).to_local())
    else:
        dist.broadcast(whole, src=0)
        held.copy_(whole)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` divided this model."""
    return isinstance(model, FSDPModule)


def sharded_units(model: nn.Module) -> list[Any]:
    """The modules whose weights are gathered at a time, in the order of their names: all of it, then each layer."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def gathered_parts(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules of each of `sharded_units`, while its weights are gathered. Call it on all."""
    for unit in sharded_units(model):
        within = {inner for other in sharded_units(unit) if other is not unit for inner in other.modules()}
        with gathered(unit):
            yield [module for module in unit.modules() if module not in within]


@contextmanager
def gathered(unit: Any) -> Iterator[None]:
    """Inside, one of `sharded_units` has its weights as plain tensors, without those of units in it. Call it on all."""
    unit.unshard()
    try:
        yield
    finally:
        unit.reshard()


@contextmanager
def held_whole(model: nn.Module, *, changes: bool = False) -> Iterator[None]:
    """Inside, every rank has all weights as plain tensors, and a forward pass needs no other rank. Call it on all.

    With `changes`, what is written to the weights inside is kept.
    """
    shards = {name: value for name, value in model.named_parameters() if isinstance(value, DTensor)}
    with ExitStack() as stack:
        stack.enter_context(_reads_as_it_is(model))
        for unit in sharded_units(model):
            unit.set_reshard_after_forward(False, recurse=False)
            stack.callback(unit.set_reshard_after_forward, unit is not model, recurse=False)
            stack.enter_context(gathered(unit))
        yield
        if changes:
            now = dict(model.named_parameters())
            for name, shard_of in shards.items():
                shard_of.to_local().detach().copy_(divided_as(now[name].detach(), shard_of).to_local())


@contextmanager
def _reads_as_it_is(model: nn.Module) -> Iterator[None]:
    """Inside, reading or writing a state_dict does not divide weights again that are gathered."""
    hooks = "_state_dict_pre_hooks", "_load_state_dict_pre_hooks"
    before = [(module, name, getattr(module, name)) for module in model.modules() for name in hooks]
    for module, name, _ in before:
        setattr(module, name, OrderedDict())
    try:
        yield
    finally:
        for module, name, own in before:
            setattr(module, name, own)


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Inside, each rank may run as many passes without gradients as it has rows for. Call it on all.

    Where every device has room, all weights are gathered once; else each layer for each pass, by all ranks at once.
    """
    if not is_sharded(model):
        with torch.inference_mode():
            yield
        return
    # Not inference_mode: what FSDP2 allocates inside is used again to train.
    with torch.no_grad(), held_whole(model) if room_for_all(model) else Turns(model).taken():
        try:
            yield
        finally:
            model.reset_iter_state()  # type: ignore[operator]  # a pass may have failed in the middle


def room_for_all(model: nn.Module) -> bool:
    """Whether the device of every rank has room for all weights. Call it on all."""
    divided = [value for value in model.parameters() if isinstance(value, DTensor)]
    size = sum(value.numel() * value.element_size() for value in divided)
    ranks, on_gpu = here(), divided[0].device_mesh.device_type == "cuda"
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available / ranks.on_host
    return not ranks.most(int(size > ROOM * free))


class Turns:
    """Layers that all ranks gather at once, while each computes rows of its own and some have more of them.

    Layers that run one behind the other are a chain: those of a decoder, or of an encoder and of a decoder. Before a
    rank enters a chain, all ranks agree on whose turn it is; one that waits for another chain, or has no rows left,
    gathers the layers with the others and computes nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        units = set(sharded_units(model))
        lists = [found for found in model.modules() if isinstance(found, nn.ModuleList)]
        chains = [[layer for layer in found if layer in units] for found in lists]
        self.model, self.chains = model, [chain for chain in chains if chain]
        self.at: tuple[int, int] | None = None
        """Chain and layer in it that runs here."""

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Inside, the layers of the model are gathered in turns."""
        with ExitStack() as stack:
            # `generate` calls parts of the model, and weights outside of layers are few.
            stack.enter_context(gathered(self.model))
            for number, chain in enumerate(self.chains):
                for place, layer in enumerate(chain):
                    hook = layer.register_forward_pre_hook(partial(self._enter, number, place), prepend=True)
                    stack.callback(hook.remove)
            try:
                yield
            finally:
                self._wait_for(NONE)

    def _enter(self, chain: int, place: int, layer: nn.Module, args: Any) -> None:
        if place == 0:
            self._wait_for(chain)
        self.at = (chain, place) if place + 1 < len(self.chains[chain]) else None

    def _wait_for(self, wanted: int) -> None:
        """Gather layers with the other ranks until it is the turn of a chain: the first that one of them wants."""
        if self.at is not None:  # a pass failed here, and the others are in the middle of it
            chain, place = self.at
            self.at = None
            self.model.reset_iter_state()  # type: ignore[operator]
            self._gather(self.chains[chain][place + 1 :])
        while (turn := -here().most(-wanted)) != wanted:
            self._gather(self.chains[turn])

    @staticmethod
    def _gather(layers: Sequence[Any]) -> None:
        for layer in layers:
            layer.unshard()
            layer.reshard()


def divided_as(value: Any, like: Any) -> Any:
    """A tensor that every rank has whole, divided as `like` is, if it is; nothing is sent."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or isinstance(value, DTensor):
        return value
    if value.shape != like.shape:
        return value
    mesh = like.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, like.placements, src_data_rank=None)


def gathered_state(model: nn.Module, leads: bool) -> dict[str, Tensor]:
    """The model's state_dict in host memory where this rank `leads`, gathered one tensor at a time. Call it on all."""
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if leads:
            found[name] = full.cpu()
    return found


def clip(parameters: list[nn.Parameter], most: float) -> float:
    """Scale sharded gradients down to this norm over all ranks; returns the norm before. Call it on all."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm: Any = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # else it is the norm of this rank's shards alone
    torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return float(norm)
