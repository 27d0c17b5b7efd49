"""One base in memory for many runs: each gets modules of its own over the same weights."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import nn


def lend(base: nn.Module) -> nn.Module:
    """A model of its own: modules, hooks and `requires_grad` are its own, the numbers lie where `base` has them.

    What replaces a weight's `.data` (PiSSA's start, a cast to float32) changes the copy alone; what writes into it
    would change `base` as well, so `part` must come before training. Packed weights cannot be lent: bitsandbytes moves
    them between a weight and its layer's state as it likes.
    """
    known: dict[int, object] = {id(buffer): buffer for buffer in base.buffers()}
    for parameter in base.parameters():
        known[id(parameter)] = nn.Parameter(parameter.data, requires_grad=parameter.requires_grad)
    return copy.deepcopy(base, known)


def part(model: nn.Module, base: nn.Module) -> None:
    """Give those of `model`'s parameters that train memory of their own, where it is `base`'s until now."""
    lent = {parameter.untyped_storage().data_ptr() for parameter in base.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.untyped_storage().data_ptr() in lent:
            parameter.data = parameter.data.clone()


def digest(base: nn.Module) -> str:
    """Of all numbers: equal before and after a run over a lent base, or the run has written where it must not."""
    made = hashlib.blake2b(digest_size=16)
    for parameter in base.parameters():
        flat = parameter.detach().reshape(-1).view(torch.uint8).cpu()
        made.update(flat.numpy().data)
    return made.hexdigest()
