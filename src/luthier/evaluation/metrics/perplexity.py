"""Held-out loss in nats per target, and perplexity, its exponential: the lower the better.

Weighted by targets, not by rows: sum of -log p over all targets / their number.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.metrics.base import Evaluation, Metric, SumMetric, Table
from luthier.evaluation.records.context import EvalContext, Record


def _terms(records: Sequence[Record]) -> NDArray[Any]:
    return np.array([[r["loss_sum"], r["targets"]] for r in records], dtype=float).reshape(-1, 2)


def _per_target(sums: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1))


LOSS = SumMetric(_terms, _per_target)
PERPLEXITY = SumMetric(_terms, lambda sums: np.exp(np.minimum(_per_target(sums), 700.0)))


class Perplexity(Evaluation):
    """Loss on the held-out targets."""

    table: ClassVar[Table] = {
        "loss": Metric(LOSS, rank=7, higher=False, scale=""),
        "perplexity": Metric(PERPLEXITY, rank=6, higher=False, scale=""),
    }

    def applies(self, context: EvalContext) -> bool:
        return not context.task.numeric  # whose loss is not a likelihood; see correlation

    def measure(self, context: EvalContext) -> list[Record]:
        return context.losses()
