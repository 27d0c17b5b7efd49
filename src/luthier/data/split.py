"""Which rows are held out, and how often the others are in an epoch: the same data and seed give the same rows."""

import math
import random
from array import array
from collections import Counter
from collections.abc import Sequence

from luthier.core.errors import DataError
from luthier.data.prepared import Portion
from luthier.data.store import Examples


def split(examples: Examples, share: float, seed: int, *, stratify: bool | None = None) -> tuple[Examples, Examples]:
    """Hold out `share` of the examples by a seeded shuffle: (training, held out).

    Equal examples, and those of one group, stay on one side, so none leaks. With `stratify` each label holds out
    its share (None: where every example has a label); a group counts as its most frequent label.
    """
    if len(examples) < 2:
        return examples, examples.take(())
    label_of, group_of = examples.labels, examples.groups
    by_label = None not in label_of if stratify is None else stratify
    units = _units(examples.digests, group_of)
    random.Random(seed).shuffle(units)
    labels = [""] * len(units)
    if by_label:
        labels = [Counter(label_of[place] or "" for place in unit).most_common(1)[0][0] for unit in units]
    wanted = max(1, round(len(examples) * share))
    rows = Counter(label for unit, label in zip(units, labels, strict=True) for _ in unit)
    room = _places(rows, share, wanted) if by_label else {"": wanted}
    held_out: list[int] = []
    rest: list[int] = []
    for unit, label in zip(units, labels, strict=True):
        fits = len(unit) <= room[label]
        room[label] -= len(unit) if fits else 0
        (held_out if fits else rest).extend(unit)
    if not held_out and any(group_of):
        least = min(map(len, units))
        why = f"no group of data.group fits into the {wanted} rows to hold out: the smallest has {least}"
        raise DataError(why, fix="raise data.validation, or give a file with validation rows")
    return examples.take(rest), examples.take(held_out)


def _units(digests: Sequence[bytes], groups: Sequence[str]) -> list[list[int]]:
    """Places that must stay together (equal examples, and those of a group), in the order of their first."""
    parent = array("Q", range(len(digests)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[bytes | str, int] = {}
    for i, keys in enumerate(zip(digests, groups, strict=True)):
        for key in keys:
            if key:
                one, other = root(first.setdefault(key, i)), root(i)
                parent[max(one, other)] = min(one, other)
    units: dict[int, list[int]] = {}
    for i in range(len(digests)):
        units.setdefault(root(i), []).append(i)
    return list(units.values())


def _places(rows: Counter[str], share: float, wanted: int) -> dict[str, int]:
    """How many rows each label holds out: its share rounded down, and what is left over to labels without any,

    then to the largest remainders. The last row of a label always trains.
    """
    places = {label: math.floor(count * share) for label, count in rows.items()}
    open_labels = [label for label, count in rows.items() if places[label] < count - 1]
    open_labels.sort(key=lambda label: (places[label] > 0, places[label] - rows[label] * share, -rows[label], label))
    for label in open_labels[: max(0, wanted - sum(places.values()))]:
        places[label] += 1
    return places


def weigh(sets: Sequence[range], examples: Examples, portions: Sequence[Portion], seed: int) -> Examples:
    """The rows of an epoch. `sets` has, for each portion, the numbers of its rows in the store, held out or not.

    Weight 2 has every row twice, weight 0.5 half of the rows once, the same ones in each epoch. Weights count after
    rows are held out, so no copy of a held-out row trains.
    """
    made = array("Q")
    for number, (one, portion) in enumerate(zip(sets, portions, strict=True)):
        rows = array("Q", (which for which in examples.numbers if which in one))
        whole = int(portion.weight)
        part = round((portion.weight - whole) * len(rows))
        more = sorted(random.Random(f"{seed}:{number}").sample(range(len(rows)), part))
        portion.held_out = len(one) - len(rows)
        portion.by_weight = 0 if whole else len(rows) - part
        portion.repeated = max(0, whole - 1) * len(rows) + (part if whole else 0)
        portion.rows = whole * len(rows) + part
        made += rows * whole + array("Q", (rows[i] for i in more))
    return Examples(examples.store, made)
