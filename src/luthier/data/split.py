"""Which rows are held out, and which stand on both sides: the same data and seed give the same answer."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

from luthier.data.example import Example
from luthier.errors import DataError, InputError


def split(
    examples: list[Example], share: float, seed: int, *, stratify: bool | None = None
) -> tuple[list[Example], list[Example]]:
    """Part off `share` of the examples by a seeded shuffle: (training, held out).

    Equal examples, and those of one group, stay on one side, so none leaks. With `stratify` each label gives
    its share (None: where every example has a label); a group counts as its most frequent label.
    """
    if len(examples) < 2:
        return examples, []
    by_label = all(example.label is not None for example in examples) if stratify is None else stratify
    units = _units(examples)
    random.Random(seed).shuffle(units)
    labels = [_label(unit) if by_label else "" for unit in units]
    rows: Counter[str] = Counter()
    for unit, label in zip(units, labels, strict=True):
        rows[label] += len(unit)
    wanted = max(1, round(len(examples) * share))
    room = _places(rows, share, wanted) if by_label else {"": wanted}
    held_out: list[Example] = []
    rest: list[Example] = []
    for unit, label in zip(units, labels, strict=True):
        fits = len(unit) <= room[label]
        room[label] -= len(unit) if fits else 0
        (held_out if fits else rest).extend(unit)
    if not held_out and any(example.group for example in examples):
        least = min(map(len, units))
        raise DataError(
            f"no group of data.group fits into the {wanted} rows to hold out: the smallest has {least}",
            mend="raise data.validation, or give a file with validation rows",
        )
    return rest, held_out


def check_labels(examples: Sequence[Example]) -> None:
    """Refuse data.stratify=true where a row has no label to go by."""
    without = next((example for example in examples if example.label is None), None)
    if without is not None:
        raise InputError(
            f"data.stratify: {without.where} has no label to go by", mend="data.stratify=auto, or a format with labels"
        )


def _units(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples that must stay together, in the order of their first: equal ones, and those of a group, joined up."""
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[Example | str, int] = {}
    for i, example in enumerate(examples):
        for key in (example.content, example.group):
            if key != "":
                one, other = root(first.setdefault(key, i)), root(i)
                parent[max(one, other)] = min(one, other)
    units: dict[int, list[Example]] = {}
    for i, example in enumerate(examples):
        units.setdefault(root(i), []).append(example)
    return list(units.values())


def _label(unit: Sequence[Example]) -> str:
    return Counter(example.label or "" for example in unit).most_common(1)[0][0]


def _places(rows: Counter[str], share: float, wanted: int) -> dict[str, int]:
    """How many rows each label holds out: its share rounded down, and what is left over to labels without any,
    then to the largest remainders. The last row of a label always trains."""
    places = {label: math.floor(count * share) for label, count in rows.items()}
    open_labels = sorted(
        (label for label, count in rows.items() if places[label] < count - 1),
        key=lambda label: (places[label] > 0, places[label] - rows[label] * share, -rows[label], label),
    )
    for label in open_labels[: max(0, wanted - sum(places.values()))]:
        places[label] += 1
    return places


def leaks(train: Sequence[Example], held_out: Sequence[Example]) -> list[tuple[Example, Example]]:
    """(validation row, training row) for every training row that is the same as a validation row."""
    there: dict[Example, Example] = {}
    for example in held_out:
        there.setdefault(example.content, example)
    return [(there[example.content], example) for example in train if example.content in there]
