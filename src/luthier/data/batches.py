"""Which rows make up each step: a pure function of seed, epoch and lengths, so a resumed run is identical."""

import random
from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from functools import lru_cache
from heapq import heappop, heappush
from math import ceil


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps of one epoch; the last one may have fewer rows."""
    return ceil(rows / batch_size)


def step_numbers(rows: int, index: int, *, batch_size: int, seed: int) -> list[int]:
    """Row numbers of optimizer step `index` (from 0): the next `batch_size` rows of the epoch's shuffle."""
    epoch, place = divmod(index, steps_per_epoch(rows, batch_size))
    return list(_order(rows, seed, epoch)[place * batch_size : (place + 1) * batch_size])


def micro_batches(
    lengths: Sequence[int],
    *,
    micro_batch: int,
    by_length: bool,
    micro_tokens: int | None = None,
    pack: int | None = None,
) -> list[list[int]]:
    """Cut the rows of a step, of these lengths in tokens, into micro-batches: places in the step.

    With `by_length` rows are sorted before they are cut, which saves padding inside each micro-batch; the step stays
    random. A micro-batch ends at `micro_batch` rows, or before its padded size would pass `micro_tokens`. With `pack`
    a micro-batch fills one sequence of that many tokens. The largest comes first: smaller ones fit into the memory
    that it leaves; the other way round, each would allocate more.
    """
    rows = list(range(len(lengths)))
    if pack:
        return packed(rows, lengths, pack)
    if by_length:
        rows.sort(key=lambda row: lengths[row], reverse=True)
    micro: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        count = len(micro[-1]) if micro else micro_batch
        if count == micro_batch or (micro_tokens and longest * (count + 1) > micro_tokens):
            micro.append([])
            longest = lengths[row]
        micro[-1].append(row)
    return micro


def dealt(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """The rows of a step, of these lengths, divided among ranks: places in the step.

    Each row goes to the rank with the fewest tokens, the longest first (Graham 1969). One rank takes them as they are.
    """
    if ranks == 1:
        return [list(range(len(lengths)))]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    filled = [(0, rank) for rank in range(ranks)]
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        tokens, rank = heappop(filled)
        shares[rank].append(row)
        heappush(filled, (tokens + lengths[row], rank))
    return shares


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> "array[int]":
    """The shuffle of an epoch, cached: shuffling a million rows takes half a second."""
    order = list(range(rows))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return array("Q", order)


def packed(rows: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows divided into as few sequences of at most `capacity` tokens as best fit finds, then balanced.

    Best-fit decreasing needs at most 11/9 of the fewest sequences possible, and a few more (Johnson 1973). Sequences of
    similar length have a lower memory peak, and the same each time: so the rows are dealt out again, each to the
    shortest sequence (Graham 1969), unless that passes the capacity.
    """
    order = sorted(rows, key=lambda row: lengths[row], reverse=True)
    room: list[tuple[int, int]] = []  # (tokens left, sequence), sorted
    found: list[list[int]] = []
    for row in order:
        place = bisect_left(room, (lengths[row], -1))
        left, sequence = room.pop(place) if place < len(room) else (capacity, len(found))
        if sequence == len(found):
            found.append([])
        found[sequence].append(row)
        insort(room, (left - lengths[row], sequence))
    even: list[list[int]] = [[] for _ in found]
    filled = [(0, sequence) for sequence in range(len(found))]
    for row in order:
        taken, sequence = heappop(filled)
        even[sequence].append(row)
        heappush(filled, (taken + lengths[row], sequence))
    made = even if max(filled)[0] <= capacity else found
    return sorted(made, key=lambda sequence: sum(lengths[row] for row in sequence), reverse=True)
