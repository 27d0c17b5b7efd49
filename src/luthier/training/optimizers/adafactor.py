"""Adafactor (Shazeer and Stern 2018, arXiv 1804.04235): a row and a column of states for each matrix."""

from luthier.training.optimizers.base import Parameter, TorchOptimizer


class Adafactor(TorchOptimizer):
    """Second moments kept as a row and a column for each matrix, from torch."""

    states = 1

    def state_bytes(self, parameter: Parameter) -> int:
        return 4 * sum(parameter.shape[-2:]) if parameter.ndim > 1 else super().state_bytes(parameter)
