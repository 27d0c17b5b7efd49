"""Held-out loss in nats per target, the sum of -log p over all targets / their number, and its exponential."""

from typing import ClassVar

import numpy as np

from luthier.evaluation.metrics.base import Evaluation, Metric, SumMetric, Table, mean_of
from luthier.evaluation.records.context import EvalContext, Record

LOSS = mean_of("loss_sum", "targets")
PERPLEXITY = SumMetric(LOSS.terms, lambda sums: np.exp(np.minimum(LOSS.value(sums), 700.0)))


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
