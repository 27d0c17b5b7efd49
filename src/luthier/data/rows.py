"""Encoded rows on disk: token ids and labels in flat arrays, read from the file row by row."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import overload

from luthier.data.store import Examples, Place, Records
from luthier.rendering.row import Row

TOKEN = "i"
"""A token id or label on disk: int32."""
BLOCK = 10_000  # rows that are looked through at once


@dataclass(slots=True)
class Encoded:
    """What became of some examples in order: their rows, flat, and those that gave none."""

    ids: array[int] = field(default_factory=lambda: array(TOKEN))
    labels: array[int] = field(default_factory=lambda: array(TOKEN))
    lengths: array[int] = field(default_factory=lambda: array("I"))
    """Of each row, in tokens."""
    label_lengths: array[int] = field(default_factory=lambda: array("I"))
    cut: array[int] = field(default_factory=lambda: array("I"))
    learned: array[int] = field(default_factory=lambda: array("I"))
    owner: array[int] = field(default_factory=lambda: array("Q"))
    """Number of the example that a row comes from."""

    def add(self, row: Row, owner: int) -> None:
        """One more row."""
        self.ids.extend(row.ids)
        self.labels.extend(row.labels)
        self.lengths.append(len(row.ids))
        self.label_lengths.append(len(row.labels))
        self.cut.append(row.cut)
        self.learned.append(row.learned)
        self.owner.append(owner)


class Rows(Sequence[Row]):
    """The rows of one side. In memory are some tens of bytes for each."""

    def __init__(self, place: Place, side: str) -> None:
        self.side = side
        self._ids, self._labels = Records(place, f"{side}.ids"), Records(place, f"{side}.labels")
        self.examples: Examples | None = None
        """What they come from; set when all are there."""
        self.lengths: array[int] = array("I")
        """Tokens of each."""
        self.cut: array[int] = array("I")
        self.learned: array[int] = array("I")
        self.owner: array[int] = array("Q")
        """For each the number of its example."""

    def extend(self, rows: Encoded, owner: Sequence[int]) -> None:
        """Add rows; `owner` numbers the examples that stay."""
        size = rows.ids.itemsize
        for records, flat, lengths in (
            (self._ids, rows.ids, rows.lengths),
            (self._labels, rows.labels, rows.label_lengths),
        ):
            begin = records.ends[-1]
            records.extend(flat.tobytes(), (begin + size * end for end in accumulate(lengths)))
        self.lengths.extend(rows.lengths)
        self.cut.extend(rows.cut)
        self.learned.extend(rows.learned)
        self.owner.extend(owner)

    def set_down(self) -> dict[str, array[int]]:
        """What is not in the files, for `again`; lets go of the files."""
        for records in (self._ids, self._labels):
            records.release()
        return {
            f"{self.side}.{name}": numbers
            for name, numbers in {
                "lengths": self.lengths,
                "cut": self.cut,
                "learned": self.learned,
                "owner": self.owner,
                "ids_ends": self._ids.ends,
                "labels_ends": self._labels.ends,
            }.items()
        }

    @classmethod
    def again(cls, place: Place, side: str, arrays: Mapping[str, array[int]]) -> Rows:
        """The rows whose files stand in `place`."""
        rows = cls(place, side)
        rows.lengths, rows.cut = arrays[f"{side}.lengths"], arrays[f"{side}.cut"]
        rows.learned, rows.owner = arrays[f"{side}.learned"], arrays[f"{side}.owner"]
        rows._ids.ends, rows._labels.ends = arrays[f"{side}.ids_ends"], arrays[f"{side}.labels_ends"]
        return rows

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        return Row(
            self._read(self._ids, number), self._read(self._labels, number), self.where(number), self.cut[number]
        )

    def with_token(self, token: int) -> Iterator[int]:
        """Numbers of the rows in which a token stands."""
        return self._holding(self._ids, {token})

    def learning(self, tokens: set[int]) -> Iterator[int]:
        """Numbers of the rows that learn one of these tokens; the first token of a row is no target."""
        return self._holding(self._labels, tokens, skip=1)

    def _holding(self, records: Records, tokens: set[int], skip: int = 0) -> Iterator[int]:
        import numpy as np

        ends = np.frombuffer(records.ends, np.uint64).astype(np.int64) // array(TOKEN).itemsize
        for begin in range(0, len(self), BLOCK):
            marks = ends[begin : begin + BLOCK + 1]
            flat = np.frombuffer(records.between(begin, begin + len(marks) - 1), np.int32)
            hits = np.flatnonzero(np.isin(flat, list(tokens))) + marks[0]
            rows = np.searchsorted(marks, hits, side="right") - 1
            yield from (begin + np.unique(rows[hits - marks[rows] >= skip])).tolist()

    def where(self, number: int) -> str:
        """Where the example of a row stands."""
        return self.examples.where(self.owner[number]) if self.examples is not None else ""

    @staticmethod
    def _read(records: Records, number: int) -> list[int]:
        row = array(TOKEN)
        row.frombytes(records[number])
        return row.tolist()
