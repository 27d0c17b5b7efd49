"""The loss of each held-out row, measured once for all metrics."""

from __future__ import annotations

from luthier.evaluation.records.context import EvalContext, Record


def losses(subject: EvalContext) -> list[Record]:
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
