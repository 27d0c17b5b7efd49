"""Which rows are held out, and which are on both sides: the same data and seed give the same split."""

import math
import random
from array import array
from collections import Counter
from collections.abc import Sequence

from luthier.core.errors import DataError, InputError
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
        raise DataError(
            f"no group of data.group fits into the {wanted} rows to hold out: the smallest has {least}",
            fix="raise data.validation, or give a file with validation rows",
        )
    return examples.take(rest), examples.take(held_out)


def check_labels(examples: Examples) -> None:
    """Refuse data.stratify=true where a row has no label."""
    labels = examples.labels
    if None in labels:
        raise InputError(
            f"data.stratify: {examples.where(labels.index(None))} has no label",
            fix="data.stratify=auto, or a format with labels",
        )


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
    then to the largest remainders. The last row of a label always trains."""
    places = {label: math.floor(count * share) for label, count in rows.items()}
    open_labels = sorted(
        (label for label, count in rows.items() if places[label] < count - 1),
        key=lambda label: (places[label] > 0, places[label] - rows[label] * share, -rows[label], label),
    )
    for label in open_labels[: max(0, wanted - sum(places.values()))]:
        places[label] += 1
    return places


def leaks(train: Examples, held_out: Examples) -> list[tuple[int, int]]:
    """Places (validation row, training row) of every training row that equals a validation row."""
    there: dict[bytes, int] = {}
    for place, digest in enumerate(held_out.digests):
        there.setdefault(digest, place)
    return [(there[digest], place) for place, digest in enumerate(train.digests) if digest in there]
