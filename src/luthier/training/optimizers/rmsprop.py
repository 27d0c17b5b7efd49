"""RMSprop (Tieleman and Hinton 2012)."""

from luthier.training.optimizers.base import TorchOptimizer


class RMSprop(TorchOptimizer):
    """Steps divided by the root of a running mean square, from torch."""

    moves_by_rate = True
    states = 1
