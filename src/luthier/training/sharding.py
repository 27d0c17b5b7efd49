"""A model whose weights, gradients and optimizer states are divided among the ranks: FSDP2, torch's `fully_shard`.

Each rank keeps 1/n of every parameter. The weights of a layer are gathered before it computes and let go behind it,
and its gradient is summed into the shards. So every rank makes the same number of passes, some perhaps over rows that
do not count (Zhao et al. 2023, arXiv 2304.11277; FSDP2 as in torch 2.13).
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from luthier.kernels.apply import repeated_blocks


def shard(model: nn.Module, world: int, device: str) -> None:
    """Divide the weights of `model` among the ranks, in place: each block by itself, then the rest."""
    mesh = init_device_mesh(device, (world,))
    blocks: list[Any] = [*repeated_blocks(model), model]
    for block in blocks:
        fully_shard(block, mesh=mesh)
        # Losses are sums, divided once by the targets of the whole step: gradients are to be summed, not averaged.
        block.set_gradient_divide_factor(1.0)
        block.set_force_sum_reduction_for_comms(True)  # gloo has no sum that multiplies first


def _sharded(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` divided this model."""
    return isinstance(model, FSDPModule)


@contextmanager
def whole(model: nn.Module, *, changes: bool = False) -> Iterator[None]:
    """Inside, every rank has all weights as plain tensors, and a forward pass needs no other rank. Call it on all.

    With `changes`, what is written to the weights inside is kept.
    """
    shards = {name: value for name, value in model.named_parameters() if isinstance(value, DTensor)}
    modules = _sharded(model)
    hooks = "_state_dict_pre_hooks", "_load_state_dict_pre_hooks"
    before = [(module, name, getattr(module, name)) for module in model.modules() for name in hooks]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    for module, name, _ in before:  # FSDP2's own divide the weights again before a state_dict is made or read
        setattr(module, name, OrderedDict())
    try:
        yield
        if changes:
            now = dict(model.named_parameters())
            for name, shard_of in shards.items():
                shard_of.to_local().detach().copy_(_part_of(now[name].detach(), shard_of).to_local())
    finally:
        for module, name, own in before:
            setattr(module, name, own)
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)


def clip(parameters: list[nn.Parameter], most: float) -> float:
    """Scale sharded gradients down to this norm over all ranks; returns the norm before. Call it on all."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm: Any = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # else it is the norm of this rank's shards alone
    torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return float(norm)


class WholeStates:
    """An optimizer of sharded parameters whose state is read and written whole, as that of one process."""

    def __init__(self, optimizer: Optimizer, leads: bool) -> None:
        self.optimizer, self.leads = optimizer, leads

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer."""
        return self.optimizer.param_groups

    def state_dict(self) -> dict[str, Any]:
        """As that of the optimizer, gathered one tensor at a time; empty where this rank does not lead."""
        found = self.optimizer.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for index, values in found["state"].items():
            state[index] = {key: self._full(value) for key, value in values.items()}
        return {**found, "state": state if self.leads else {}}

    def _full(self, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full: Tensor = value.full_tensor()
        return full.cpu() if self.leads else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's shards of a whole state."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        own: dict[int, dict[str, Any]] = {}
        for index, values in state["state"].items():
            place = parameters[index]
            own[index] = {key: self._part(value, place) for key, value in values.items()}
        self.optimizer.load_state_dict({**state, "state": own})

    @staticmethod
    def _part(value: Any, place: Any) -> Any:
        if not isinstance(value, Tensor) or not isinstance(place, DTensor) or value.shape != place.shape:
            return value
        return _part_of(value.to(place.device), place)


def _part_of(value: Tensor, like: DTensor) -> DTensor:
    """The shards of a tensor that every rank has whole, divided as `like` is; nothing is sent."""
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
