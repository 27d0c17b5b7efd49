"""Weights that hold a NaN or an infinity are found by name, in one pass and without memory of their own."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from luthier.core.errors import InputError, ModelError


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Name of the first tensor that is not finite throughout; empty where there is none.

    A NaN or an infinity never leaves a sum. A sum of finite numbers may overflow, so such a tensor is looked at twice.
    """
    floats = [(n, t.detach()) for n, t in tensors if t.is_floating_point() and t.device.type != "meta"]
    sums = [tensor.sum(dtype=torch.float32) for _, tensor in floats]
    if not sums or all(torch.stack([each.to(sums[0].device) for each in sums]).isfinite().tolist()):
        return ""
    suspects = (each for each, total in zip(floats, sums, strict=True) if not bool(total.isfinite()))
    return next((name for name, tensor in suspects if not bool(tensor.isfinite().all())), "")


def weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name; of one packed in 8 or 4 bit its scales, for whole numbers are always finite."""
    for name, parameter in model.named_parameters():
        yield name, parameter
        state: Any = getattr(parameter, "quant_state", None)
        packed = ((parameter, "SCB"), (state, "absmax"), (getattr(state, "state2", None), "absmax"))
        scales = (getattr(owner, key, None) for owner, key in packed)
        yield from ((name, each) for each in scales if isinstance(each, Tensor))


def shapes_in(file: Path, fix: str) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a safetensors file, from its header alone; ModelError with `fix` where it is damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged: {error or 'its header cannot be read'}", fix=fix) from None


def refuse_file(file: Path) -> None:
    """InputError where a tensor of a safetensors file is not finite. For adapters: it reads all of the file."""
    if name := not_finite(load_file(file).items()):
        message = f"{file}: the weight {name} holds NaN or infinity, so every answer would be NaN"
        raise InputError(message, fix="take another adapter, or retrain it with a lower train.lr")
