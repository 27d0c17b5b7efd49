"""torch.compile for the blocks of a model, where a recipe asks for it (train.compile).

The block that repeats (a decoder layer) is compiled once for all layers and for any number of tokens: a whole model
would take as many times longer to compile as it has layers.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from luthier.core.errors import InputError


def check_compile(device: str) -> None:
    """Compile one small function for this device; InputError where that fails. Seconds: comes before any weights."""
    try:
        torch.compile(lambda numbers: numbers.cos() + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever a missing or broken compiler makes of it
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"train.compile: torch.compile does not work here: {what}",
            fix="a C++ compiler (g++, or the one that CXX names) for a CPU, Triton for a GPU; or train.compile=false",
        ) from error


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The model's layers: modules of the class that is most frequent in its lists of modules."""
    listed = [m for found in model.modules() if isinstance(found, nn.ModuleList) for m in found]
    if not listed:
        return []
    most = Counter(type(m) for m in listed).most_common(1)[0][0]
    return [m for m in listed if type(m) is most]


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """A context in which the model's blocks are compiled, but for passes without gradients.

    Those (the held-out rows between two steps) have other shapes and are few: compiling for them would not pay.
    """
    changed: list[Any] = repeated_blocks(model)
    for block in changed:
        block.compile(dynamic=True)
        block._compiled_call_impl = _with_gradients(block._compiled_call_impl, block)
    try:
        yield
    finally:
        for block in changed:
            block._compiled_call_impl = None


def _with_gradients(made: Any, block: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return (made if torch.is_grad_enabled() else block._call_impl)(*args, **kwargs)

    return call
