"""Adam (Kingma and Ba 2015, arXiv 1412.6980)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.training.optimizers.base import Optimizer

if TYPE_CHECKING:
    from torch import nn, optim


class Adam(Optimizer):
    """Two moments of the gradient in float32, from torch."""

    def build(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> "optim.Optimizer":
        import torch

        return torch.optim.Adam(groups, lr=lr, betas=betas)

    def state_bytes(self, parameter: "nn.Parameter") -> int:
        return 8 * parameter.numel()  # two moments in float32
