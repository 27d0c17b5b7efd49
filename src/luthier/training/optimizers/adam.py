"""Adam (Kingma and Ba 2015, arXiv 1412.6980)."""

from luthier.training.optimizers.base import TorchOptimizer


class Adam(TorchOptimizer):
    """Two moments of the gradient in float32, from torch."""

    moves_by_rate = True
    states = 2
    takes = "betas"
