"""Which rows make up each step: a pure function of seed, epoch and lengths, so a resumed run goes on exactly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import ceil


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps of one pass; the last one may have fewer rows."""
    return ceil(rows / batch_size)


def step_rows(
    lengths: Sequence[int],
    index: int,
    *,
    batch_size: int,
    micro_batch: int,
    seed: int,
    by_length: bool,
    micro_tokens: int | None = None,
) -> list[list[int]]:
    """Row numbers of optimizer step `index` (from 0), cut into micro-batches.

    A step takes the next `batch_size` rows of the epoch's shuffle, so steps stay random; with `by_length`
    its rows are sorted before they are cut into micro-batches, which saves padding inside each. A
    micro-batch ends at `micro_batch` rows, or before its padded size would pass `micro_tokens`.
    """
    epoch, place = divmod(index, steps_per_epoch(len(lengths), batch_size))
    order = list(range(len(lengths)))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    rows = order[place * batch_size : (place + 1) * batch_size]
    if by_length:
        rows.sort(key=lambda row: lengths[row])
    micro: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        full = micro and (
            len(micro[-1]) == micro_batch or (micro_tokens and longest * (len(micro[-1]) + 1) > micro_tokens)
        )
        if full or not micro:
            micro.append([])
            longest = lengths[row]
        micro[-1].append(row)
    return micro
