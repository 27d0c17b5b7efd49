"""What a metric is: a function of records, one per held-out example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.core.registry import Family, Plugin
from luthier.evaluation.records.context import EvalContext, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray


MetricFunction = Callable[[Sequence[Record]], float]


@dataclass(frozen=True)
class SumMetric:
    """A metric that follows from sums over the records, so that a resample costs a matrix product and not a loop."""

    terms: Callable[[Sequence[Record]], NDArray[Any]]
    """[records, terms]: what is summed."""
    value: Callable[[NDArray[Any]], NDArray[Any]]
    """[draws, terms] -> [draws]: the metric of each sum."""

    def __call__(self, records: Sequence[Record]) -> float:
        """The metric of these records; 0 of none."""
        return float(self.value(self.terms(records).sum(0, keepdims=True))[0]) if records else 0.0


def mean_of(key: str) -> SumMetric:
    """The mean of record[key] over the records that have it."""
    import numpy as np

    def terms(records: Sequence[Record]) -> NDArray[Any]:
        return np.array([[float(r[key]), 1.0] if key in r else [0.0, 0.0] for r in records]).reshape(-1, 2)

    return SumMetric(terms, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1))


class Evaluation(Plugin):
    """One way to measure a model."""

    higher_is_better: ClassVar[bool] = True

    def applies(self, subject: EvalContext) -> bool:
        """Can these rows be measured this way?"""
        raise NotImplementedError

    def lacks(self, subject: EvalContext) -> str:
        """What keeps an evaluation that would fit from being made, with the fix; mostly nothing."""
        return ""

    def measure(self, subject: EvalContext) -> list[Record]:
        """One record per example, in order; all evaluations of an example share one record in the end."""
        raise NotImplementedError

    def metrics(self) -> dict[str, MetricFunction]:
        """Metric names and how each follows from the records."""
        raise NotImplementedError

    def higher(self, metric: str) -> bool:
        """Is more of this metric better?"""
        return self.higher_is_better


EVALUATIONS = Family(
    Evaluation,
    "evaluation",
)
