"""OFT: turn the weights by trained orthogonal blocks.

Qiu et al. 2023, arXiv 2306.07280. W' = R W, R block-diagonal and orthogonal by the Cayley transform of skew
matrices that start at zero, so training starts from the base exactly and angles between neurons stay.
It folds into the weights. Layers and file format are PEFT's.

When: what the base knows must be kept while its manner changes. When not: speed counts, for every
layer turns its input at every step (a merged model costs nothing).
"""

from __future__ import annotations

from math import gcd
from types import MethodType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from luthier.core.errors import InputError
from luthier.core.registry import Place, Share
from luthier.methods.base import PeftMethod, split_names
from luthier.methods.layers.targets import check_targets, fused_experts, peft_names

if TYPE_CHECKING:
    from torch import Tensor, nn


class OFT(PeftMethod):
    """Orthogonal turns of the weights."""

    paper: ClassVar[str] = "2306.07280"
    suggested_lr: ClassVar[float] = 5e-4
    suggested_lr_encoder: ClassVar[float | None] = 1e-3
    lr_by_width: ClassVar[bool] = False
    typical_share: ClassVar[float] = 0.0077
    aliases: ClassVar[dict[str, str]] = {
        "oft_block_size": "block",
        "target_modules": "targets",
        "layers_to_transform": "layers",
    }

    block: Annotated[int, Field(ge=2, le=65_536)] = 32
    """Size of the blocks; must divide the input size of every layer."""
    dropout: Share = 0.0
    """Share of the blocks left as they are during training."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers to adapt, or all-linear: every one but the output."""
    layers: tuple[Place, ...] = ()
    """Numbers of the blocks to adapt, from 0; empty means every block."""

    _split = field_validator("targets", "layers", mode="before")(split_names)

    def check(self, model: nn.Module, *, classify: bool = False, quantize: str = "none") -> None:
        sizes: dict[str, int] = {}
        for name, layer in check_targets(model, self.targets, self.layers).items():
            if not hasattr(layer, "in_features"):
                raise InputError(
                    f"method oft cannot turn {name}, which is a {type(layer).__name__} and no nn.Linear",
                    fix="method=lora",
                )
            sizes[name] = layer.in_features
        for name, size in sizes.items():
            if size % self.block:
                divisor = _divisor(gcd(*sizes.values()), self.block)
                raise InputError(
                    f"method.block: {self.block} does not divide the {size} inputs of {name}",
                    fix=f"method.block={divisor}" if divisor > 1 else "method=lora: no block divides every layer",
                )
        super().check(model, classify=classify, quantize=quantize)

    def guard(self, model: nn.Module, classify: bool) -> None:
        for module in model.modules():
            if type(module).__name__ == "OFTRotationModule":
                module.forward = MethodType(_rotate, module)

    def caveat(self, model: nn.Module) -> str:
        return fused_experts(model)

    def peft_config(self, model: nn.Module, steps: int) -> Any:
        from peft import OFTConfig

        return OFTConfig(
            r=0,
            oft_block_size=self.block,
            module_dropout=self.dropout,
            # PEFT's default is a series cut off after four terms, which is no rotation once the weights have grown.
            use_cayley_neumann=False,
            target_modules=peft_names(model, self.targets, self.layers),
        )


def _rotate(self: Any, x: Tensor) -> Tensor:
    """PEFT takes any input of four dimensions for an image; a linear layer may get one too (DeepSeek V3)."""
    made: Tensor = type(self).forward(self, x.reshape(-1, x.size(-1)))
    return made.reshape(x.shape)


def _divisor(size: int, most: int) -> int:
    return max(n for n in range(1, most + 1) if size % n == 0)
