"""Held-out loss in nats per target, and perplexity, its exponential: the lower the better.

Weighted by targets, not by rows: sum of -log p over all targets / their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.evaluation.base import Evaluation, MetricFunction, OfSums, Record, Subject

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Perplexity(Evaluation):
    """Loss on the held-out targets."""

    higher_is_better: ClassVar[bool] = False

    def applies(self, subject: Subject) -> bool:
        return not subject.task.numeric  # whose loss is no likelihood; see correlation

    def measure(self, subject: Subject) -> list[Record]:
        return losses(subject)

    def metrics(self) -> dict[str, MetricFunction]:
        import numpy as np

        return {
            "loss": OfSums(_terms, _per_target),
            "perplexity": OfSums(_terms, lambda sums: np.exp(np.minimum(_per_target(sums), 700.0))),
        }


def losses(subject: Subject) -> list[Record]:
    """For each example the task's own loss, summed over its targets, and their number."""
    import torch

    records: list[Record] = [{"loss_sum": 0.0, "targets": 0} for _ in subject.examples]
    with torch.inference_mode():
        for numbers, batch in subject.batches(subject.rows, "held-out rows"):
            sums, targets = subject.task.losses(subject.model, batch)
            for number, total, count in zip(numbers, sums.tolist(), targets.tolist(), strict=True):
                record = records[subject.owner[number]]
                record["loss_sum"] += total
                record["targets"] += count
    return records


def loss(records: Sequence[Record]) -> float:
    """Nats per target."""
    return float(sum(r["loss_sum"] for r in records) / max(1, sum(r["targets"] for r in records)))


def _terms(records: Sequence[Record]) -> NDArray[Any]:
    import numpy as np

    return np.array([[r["loss_sum"], r["targets"]] for r in records], dtype=float).reshape(-1, 2)


def _per_target(sums: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1))
