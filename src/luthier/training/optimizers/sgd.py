"""Stochastic gradient descent with momentum, the first of train.betas."""

from luthier.training.optimizers.base import TorchOptimizer


class SGD(TorchOptimizer):
    """Steps along the gradient with momentum, from torch."""

    states = 1
    takes = "momentum"
