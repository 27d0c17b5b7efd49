"""Pearson's and Spearman's correlation and the mean squared error, where a number is learned (task regress).

Pearson's r = cov(x, y) / (sd x sd y), over the predicted and the true numbers; Spearman's rho is r of their ranks, ties
with the mean of their ranks. A model that says the same number always has no correlation; that counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.evaluation.metrics.base import Evaluation, MetricFunction, SumMetric, mean_of
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.records.losses import losses

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Correlation(Evaluation):
    """How well the predicted numbers follow the true ones."""

    def applies(self, subject: EvalContext) -> bool:
        return subject.task.numeric

    def measure(self, subject: EvalContext) -> list[Record]:
        import torch

        records = losses(subject)
        with torch.inference_mode():
            for numbers, batch in subject.batches(subject.rows, "held-out rows"):
                logits = subject.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                for number, value in zip(numbers, logits[:, 0].float().tolist(), strict=True):
                    owner = subject.owner[number]
                    true = float(subject.examples[owner].label or "nan")
                    records[owner] |= {"number": true, "guess": value, "squared": (value - true) ** 2}
        return records

    def metrics(self) -> dict[str, MetricFunction]:
        return {"pearson": SumMetric(_moments, _pearson), "spearman": spearman, "squared_error": mean_of("squared")}

    def higher(self, metric: str) -> bool:
        return metric != "squared_error"


def _moments(records: Sequence[Record]) -> NDArray[Any]:
    import numpy as np

    if not records:
        return np.zeros((0, 6))
    pairs = np.array([[r["guess"], r["number"]] for r in records])
    x, y = (pairs - pairs.mean(0)).T  # near zero, or the difference of large sums would lose digits
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)


def _pearson(sums: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    n, x, y, xx, yy, xy = sums.T
    n = np.maximum(n, 1)
    spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    whole = np.sqrt(np.maximum(xx * yy, 1e-300))
    return np.where(spread > 1e-12 * whole, (xy - x * y / n) / np.maximum(spread, 1e-300), 0.0)


def spearman(records: Sequence[Record]) -> float:
    """Pearson's r of the ranks."""
    if not records:
        return 0.0
    guesses, numbers = _ranks([r["guess"] for r in records]), _ranks([r["number"] for r in records])
    ranked = [{"guess": a, "number": b} for a, b in zip(guesses, numbers, strict=True)]
    return float(_pearson(_moments(ranked).sum(0, keepdims=True))[0])


def _ranks(values: Sequence[float]) -> list[float]:
    import numpy as np

    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return list(((ends - counts + ends - 1) / 2)[inverse])
