"""Which rows make up each step: a pure function of seed, epoch and lengths, so a resumed run goes on exactly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import ceil


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps of one pass; the last one may have fewer rows."""
    return ceil(rows / batch_size)


def step_rows(
    lengths: Sequence[int], index: int, *, batch_size: int, micro_batch: int, seed: int, by_length: bool
) -> list[list[int]]:
    """Row numbers of optimizer step `index` (from 0), cut into micro-batches.

    A step takes the next `batch_size` rows of the epoch's shuffle, so steps stay random; with `by_length`
    its rows are sorted before they are cut into micro-batches, which saves padding inside each.
    """
    epoch, place = divmod(index, steps_per_epoch(len(lengths), batch_size))
    order = list(range(len(lengths)))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    rows = order[place * batch_size : (place + 1) * batch_size]
    if by_length:
        rows.sort(key=lambda row: lengths[row])
    return [rows[i : i + micro_batch] for i in range(0, len(rows), micro_batch)]
