"""Full fine-tuning: train every weight of the base model.

The most capacity, the most memory: with AdamW in float32 about 16 bytes per parameter before
activations. Learning rates are small, 1e-5 to 5e-5 for pretrained encoders and 1e-5 to 2e-5 for
large decoders; small models trained from scratch bear a hundred times that.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.errors import InputError
from luthier.methods.base import Method

if TYPE_CHECKING:
    from torch import nn


class Full(Method):
    """Train every weight of the base model."""

    suggested_lr: ClassVar[float] = 2e-5
    quantized_base: ClassVar[bool] = False
    saves: ClassVar[Literal["adapter", "model"]] = "model"

    def attach(self, model: nn.Module, *, steps: int, classify: bool = False) -> nn.Module:
        # Half-precision weights lose small updates, and AMP refuses to unscale fp16 gradients.
        return model.float().requires_grad_(True)

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]

    def restore(self, model: nn.Module, folder: Path) -> None:
        import torch
        from safetensors import safe_open

        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        # A tied weight is stored once, under one of its names.
        waiting = {id(parameter): name for name, parameter in model.named_parameters()}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as stored, torch.no_grad():
                for key in stored.keys():  # noqa: SIM118 (safe_open is not iterable)
                    if key not in own:
                        raise InputError(f"{file}: weight {key!r} is not in this model")
                    own[key].copy_(stored.get_tensor(key))
                    waiting.pop(id(own[key]), None)
        if waiting:
            raise InputError(f"{folder}: {len(waiting)} weights are missing, among them {sorted(waiting.values())[0]}")

    def merge(self, model: nn.Module) -> nn.Module:
        return model
