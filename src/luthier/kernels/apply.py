"""All that computes faster here, put into a model for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from luthier.kernels import gated_mlp, lora, rms_norm
from luthier.kernels.attention import row_by_row
from luthier.kernels.compiled import compiled


@contextmanager
def fused(model: nn.Module, packed: bool = False, compile: bool = False, *, trial: bool = True) -> Iterator[None]:
    """In here `model` computes with ours what its own code computes in more memory or time; `packed` adds attention.

    The numbers are the same to rounding: each module decides by a trial, and by what it carries at each call. A model
    without numbers, which is only planned, has no `trial`. With `compile` blocks are torch.compile's instead, and only
    attention is ours; without `trial` as they are, for which the compiler's work is not foreseen.
    """
    with ExitStack() as stack:
        if packed:
            stack.enter_context(row_by_row(model, apart=compile))
        if compile:
            if trial:
                stack.enter_context(compiled(model))
            yield
            return
        changed = [*lora.fuse(model), *gated_mlp.fuse(model, trial=trial), *rms_norm.fuse(model, trial=trial)]
        try:
            yield
        finally:
            for module in changed:
                del module.forward
