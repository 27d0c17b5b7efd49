"""Pearson's and Spearman's correlation and the mean squared error of predicted numbers (task regress).

Pearson's r = cov(x, y) / (sd x sd y), over the predicted and the true numbers; Spearman's rho is r of their ranks, ties
with the mean of their ranks. A model that always predicts the same number has no correlation; that counts as 0.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.metrics.base import Evaluation, Metric, SumMetric, Table, mean_of
from luthier.evaluation.records.context import EvalContext, Record


def _moments(records: Sequence[Record]) -> NDArray[Any]:
    if not records:
        return np.zeros((0, 6))
    pairs = np.array([[r["guess"], r["number"]] for r in records])
    x, y = (pairs - pairs.mean(0)).T  # near zero, or the difference of large sums would lose digits
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)


def _pearson(sums: NDArray[Any]) -> NDArray[Any]:
    n, x, y, xx, yy, xy = sums.T
    n = np.maximum(n, 1)
    spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    whole = np.sqrt(np.maximum(xx * yy, 1e-300))
    return np.where(spread > 1e-12 * whole, (xy - x * y / n) / np.maximum(spread, 1e-300), 0.0)


def spearman(records: Sequence[Record]) -> float:
    """Pearson's r of the ranks."""
    if not records:
        return 0.0
    guesses, numbers = (_ranks([r[key] for r in records]) for key in ("guess", "number"))
    ranked = [{"guess": a, "number": b} for a, b in zip(guesses, numbers, strict=True)]
    return float(_pearson(_moments(ranked).sum(0, keepdims=True))[0])


def _ranks(values: Sequence[float]) -> list[float]:
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return list(((ends - counts + ends - 1) / 2)[inverse])


class Correlation(Evaluation):
    """How well the predicted numbers follow the true ones."""

    table: ClassVar[Table] = {
        "pearson": Metric(SumMetric(_moments, _pearson), rank=2, scale="-1 to 1", per_example="squared_error"),
        "spearman": Metric(spearman, scale="-1 to 1", per_example="squared_error"),
        "squared_error": Metric(mean_of("squared"), higher=False, scale=""),
    }

    def applies(self, context: EvalContext) -> bool:
        return context.task.numeric

    def measure(self, context: EvalContext) -> list[Record]:
        records = context.losses()
        for owner, logits in context.logits():
            value, true = float(logits[0]), float(context.examples[owner].label or "nan")
            records[owner] |= {"number": true, "guess": value, "squared": (value - true) ** 2}
        return records
