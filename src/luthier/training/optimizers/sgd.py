"""Stochastic gradient descent with momentum, the first of train.betas."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.training.optimizers.base import Optimizer

if TYPE_CHECKING:
    from torch import nn, optim


class SGD(Optimizer):
    """Steps along the gradient with momentum, from torch."""

    def build(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> "optim.Optimizer":
        import torch

        return torch.optim.SGD(groups, lr=lr, momentum=betas[0])

    def state_bytes(self, parameter: "nn.Parameter") -> int:
        return 4 * parameter.numel()  # the momentum in float32
