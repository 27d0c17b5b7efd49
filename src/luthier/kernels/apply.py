"""Put everything that computes faster here into a model, or torch.compile, for the time of a context."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from luthier.core.errors import InputError, first_line
from luthier.kernels import gated_mlp, lora, rms_norm
from luthier.kernels.attention import row_by_row


@contextmanager
def patched(
    model: nn.Module,
    packed: bool = False,
    compile: bool = False,
    *,
    trial: bool = True,
    parts: Iterable[Sequence[nn.Module]] | None = None,
) -> Iterator[None]:
    """A context in which these kernels replace what the model's own code computes in more memory or time.

    Each module decides by a `trial` (none where a model has no numbers) and by its state at each call. `packed` adds
    attention over packed rows. With `compile` blocks are torch.compile's, where there is a trial; attention is ours.
    `parts` are the modules in groups, where each has its weights only while its group is at hand.
    """
    blocks: list[Any] = repeated_blocks(model) if compile and trial else []
    changed: list[nn.Module] = []
    with row_by_row(model, apart=compile) if packed else nullcontext():
        for part in () if compile else parts or [list(model.modules())]:
            changed += [*lora.patch(part), *gated_mlp.patch(part, trial=trial), *rms_norm.patch(part, trial=trial)]
        for block in blocks:
            block.compile(dynamic=True)
            block._compiled_call_impl = _with_gradients(block._compiled_call_impl, block)
        try:
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None
            for module in changed:
                del module.forward


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The model's layers: modules of the class most frequent in its lists. One is compiled for all of them."""
    lists = [found for found in model.modules() if isinstance(found, nn.ModuleList)]
    within = {inner for found in lists for layer in found for inner in layer.modules() if inner is not layer}
    listed = [layer for found in lists if found not in within for layer in found]  # experts are parts of layers
    most = Counter(type(m) for m in listed).most_common(1)
    return [m for m in listed if type(m) is most[0][0]]


def _with_gradients(made: Any, block: Any) -> Any:
    """The compiled block, but for passes without gradients: they are few and of other shapes, so it would not pay."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return (made if torch.is_grad_enabled() else block._call_impl)(*args, **kwargs)

    return call


def check_compile(device: str) -> None:
    """Compile one small function for this device; InputError where that fails. Seconds: comes before any weights."""
    try:
        torch.compile(lambda numbers: numbers.cos() + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever a missing or broken compiler makes of it
        fix = "a C++ compiler (g++, or the one that CXX names) for a CPU, Triton for a GPU; or train.compile=false"
        raise InputError(f"train.compile: torch.compile does not work here: {first_line(error)}", fix=fix) from error


def checkpoint_layers(model: Any, **kwargs: bool) -> None:
    """Keep only the input of each layer for the backward pass, which computes the rest again (gradient checkpointing).

    `kwargs` are those of torch.utils.checkpoint.
    """
    # Reentrant checkpointing drops gradients where the inputs need none, which is so under every adapter. Without it
    # they need none: transformers 5.23 makes the embeddings need one all the same, and below the first trained weight
    # the backward pass would go on for nothing.
    model.activation_checkpointing_enable({"use_reentrant": False, **kwargs})
    model.disable_input_require_grads()
