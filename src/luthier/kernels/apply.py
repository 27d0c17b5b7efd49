"""Put everything that computes faster here into a model, for the time of a context."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from luthier.kernels import gated_mlp, lora, rms_norm
from luthier.kernels.attention import row_by_row
from luthier.kernels.compiled import compiled


@contextmanager
def patched(model: nn.Module, packed: bool = False, compile: bool = False, *, trial: bool = True) -> Iterator[None]:
    """A context in which these kernels replace what the model's own code computes in more memory or time.

    The numbers are the same to rounding: each module decides by a trial, and by its state at each call. A model without
    numbers, which is only planned, has no `trial`. `packed` adds attention over packed rows. With `compile` blocks are
    torch.compile's instead, and only attention is ours; without `trial` they stay as they are.
    """
    with ExitStack() as stack:
        if packed:
            stack.enter_context(row_by_row(model, apart=compile))
        if compile:
            if trial:
                stack.enter_context(compiled(model))
            yield
            return
        changed = [*lora.patch(model), *gated_mlp.patch(model, trial=trial), *rms_norm.patch(model, trial=trial)]
        try:
            yield
        finally:
            for module in changed:
                del module.forward
