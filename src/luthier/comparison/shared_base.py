"""One base in memory for many runs: each run gets modules of its own over the same weights."""

import copy

from torch import nn


def share_base(base: nn.Module) -> nn.Module:
    """Copy the modules, hooks and `requires_grad` flags of `base`; the weights stay in the memory of `base`.

    What replaces a weight's `.data` (PiSSA's start, a cast to float32) changes the copy alone. What writes into it
    would change `base` as well, so call `untie` before training. Quantized weights cannot be shared: bitsandbytes moves
    them between a weight and its layer's state.
    """
    known: dict[int, object] = {id(buffer): buffer for buffer in base.buffers()}
    for parameter in base.parameters():
        known[id(parameter)] = nn.Parameter(parameter.data, requires_grad=parameter.requires_grad)
    return copy.deepcopy(base, known)


def untie(model: nn.Module, base: nn.Module) -> None:
    """Give the trainable parameters of `model` that lie in the memory of `base` memory of their own."""
    shared = {parameter.untyped_storage().data_ptr() for parameter in base.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.untyped_storage().data_ptr() in shared:
            parameter.data = parameter.data.clone()
