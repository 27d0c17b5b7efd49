"""OFT: turn the weights by trained orthogonal blocks.

Qiu et al. 2023, arXiv 2306.07280. W' = R W, R block-diagonal and orthogonal by the Cayley transform of skew
matrices that start at zero, so training starts from the base exactly and angles between neurons stay.
It folds into the weights. Layers and file format are PEFT's.

When: what the base knows must be kept while its manner changes. When not: speed counts, for every
layer turns its input at every step (a merged model costs nothing).
"""

from math import gcd
from types import MethodType
from typing import Annotated, Any, ClassVar

from pydantic import Field

from luthier.core.errors import InputError
from luthier.core.registry import Share
from luthier.methods.base import TARGET_ALIASES, Model, State, TargetedMethod
from luthier.models.targets import refuse_conv1d


class OFT(TargetedMethod):
    """Orthogonal rotations of the weights."""

    paper, typical_share = "2306.07280", 0.0077
    family = "reparametrization"
    suggested_lr, suggested_lr_encoder = 1e-3, 1e-3
    lr_by_width = 0
    aliases: ClassVar = {**TARGET_ALIASES, "oft_block_size": "block"}

    block: Annotated[int, Field(ge=2, le=65_536)] = 32
    """Size of the blocks; must divide the input size of every layer."""
    dropout: Share = 0.0
    """Share of the blocks left as they are during training."""

    def check_layers(self, layers: State) -> None:
        refuse_conv1d(layers, "method oft cannot turn")
        common = gcd(*(layer.in_features for layer in layers.values()))
        for name, layer in layers.items():
            if layer.in_features % self.block:
                divisor = max(n for n in range(1, self.block + 1) if common % n == 0)
                fix = f"method.block={divisor}" if divisor > 1 else "method=lora: no block divides every layer"
                message = f"method.block: {self.block} does not divide the {layer.in_features} inputs of {name}"
                raise InputError(message, fix=fix)

    def guard(self, model: Model) -> None:
        for module in model.modules():
            if type(module).__name__ == "OFTRotationModule":
                module.forward = MethodType(_rotate, module)

    def peft_config(self, model: Model, steps: int) -> Any:
        from peft import OFTConfig

        # PEFT's default is a series cut off after four terms, which is no rotation once the weights have grown.
        own: dict[str, Any] = {"oft_block_size": self.block, "module_dropout": self.dropout, "r": 0}
        return OFTConfig(target_modules=self.target_modules(model), use_cayley_neumann=False, **own)


def _rotate(self: Any, x: Any) -> Any:
    """Rotate [..., H]: PEFT takes any input of four dimensions for an image; a linear layer may get them (DeepSeek)."""
    return type(self).forward(self, x.reshape(-1, x.size(-1))).reshape(x.shape)
