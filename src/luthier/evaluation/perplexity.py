"""Held-out loss in nats per target, and perplexity, its exponential: the lower the better.

Weighted by targets, not by rows: sum of -log p over all targets / their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from luthier.evaluation.base import Evaluation, MetricFunction, Record, Subject


class Perplexity(Evaluation):
    """Loss on the held-out targets."""

    higher_is_better: ClassVar[bool] = False

    def applies(self, subject: Subject) -> bool:
        return True

    def measure(self, subject: Subject) -> list[Record]:
        import torch

        records: list[Record] = [{"loss_sum": 0.0, "targets": 0} for _ in subject.examples]
        with torch.inference_mode():
            for numbers, batch in subject.batches(subject.rows):
                sums, targets = subject.task.losses(subject.model, batch)
                for number, total, count in zip(numbers, sums.tolist(), targets.tolist(), strict=True):
                    record = records[subject.owner[number]]
                    record["loss_sum"] += total
                    record["targets"] += count
        return records

    def metrics(self) -> dict[str, MetricFunction]:
        return {"loss": loss, "perplexity": lambda records: math.exp(min(loss(records), 700.0))}


def loss(records: Sequence[Record]) -> float:
    """Nats per target."""
    return float(sum(r["loss_sum"] for r in records) / max(1, sum(r["targets"] for r in records)))
