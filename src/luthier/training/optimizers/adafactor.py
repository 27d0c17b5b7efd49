"""Adafactor (Shazeer and Stern 2018, arXiv 1804.04235): a row and a column of states for each matrix."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.training.optimizers.base import Optimizer

if TYPE_CHECKING:
    from torch import nn, optim


class Adafactor(Optimizer):
    """Second moments kept as a row and a column for each matrix, from torch."""

    def build(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> "optim.Optimizer":
        import torch

        return torch.optim.Adafactor(groups, lr=lr)

    def state_bytes(self, parameter: "nn.Parameter") -> int:
        return 4 * (sum(parameter.shape[-2:]) if parameter.ndim > 1 else parameter.numel())
