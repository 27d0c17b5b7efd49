"""The loss of each held-out row, measured once for all metrics."""

from __future__ import annotations

from luthier.evaluation.records.context import EvalContext, Record


def losses(context: EvalContext) -> list[Record]:
    """For each example the task's own loss, summed over its targets, and their number."""
    import torch

    records: list[Record] = [{"loss_sum": 0.0, "targets": 0} for _ in context.examples]
    with torch.inference_mode():
        for numbers, batch in context.batches(context.rows, "held-out rows"):
            sums, targets = context.task.losses(context.model, batch)
            for number, total, count in zip(numbers, sums.tolist(), targets.tolist(), strict=True):
                record = records[context.owner[number]]
                record["loss_sum"] += total
                record["targets"] += count
    return records
