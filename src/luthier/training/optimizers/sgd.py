"""Stochastic gradient descent with momentum, the first of train.betas."""

from typing import Any

from luthier.training.optimizers.base import TorchOptimizer


class SGD(TorchOptimizer):
    """Steps along the gradient with momentum, from torch."""

    states = 1

    def options(self, betas: tuple[float, float]) -> dict[str, Any]:
        return {"momentum": betas[0]}
