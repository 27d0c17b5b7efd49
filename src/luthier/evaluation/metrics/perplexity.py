"""Held-out loss in nats per target, and perplexity, its exponential: the lower the better.

Weighted by targets, not by rows: sum of -log p over all targets / their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.evaluation.metrics.base import Evaluation, MetricFunction, SumMetric
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.records.losses import losses

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Perplexity(Evaluation):
    """Loss on the held-out targets."""

    higher_is_better: ClassVar[bool] = False

    def applies(self, subject: EvalContext) -> bool:
        return not subject.task.numeric  # whose loss is no likelihood; see correlation

    def measure(self, subject: EvalContext) -> list[Record]:
        return losses(subject)

    def metrics(self) -> dict[str, MetricFunction]:
        import numpy as np

        return {
            "loss": SumMetric(_terms, _per_target),
            "perplexity": SumMetric(_terms, lambda sums: np.exp(np.minimum(_per_target(sums), 700.0))),
        }


def loss(records: Sequence[Record]) -> float:
    """Nats per target."""
    return float(sum(r["loss_sum"] for r in records) / max(1, sum(r["targets"] for r in records)))


def _terms(records: Sequence[Record]) -> NDArray[Any]:
    import numpy as np

    return np.array([[r["loss_sum"], r["targets"]] for r in records], dtype=float).reshape(-1, 2)


def _per_target(sums: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1))
