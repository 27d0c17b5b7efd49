"""RMSprop (Tieleman and Hinton 2012)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.training.optimizers.base import Optimizer

if TYPE_CHECKING:
    from torch import nn, optim


class RMSprop(Optimizer):
    """Steps divided by the root of a running mean square, from torch."""

    def build(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> "optim.Optimizer":
        import torch

        return torch.optim.RMSprop(groups, lr=lr)

    def state_bytes(self, parameter: "nn.Parameter") -> int:
        return 4 * parameter.numel()  # the mean square in float32
