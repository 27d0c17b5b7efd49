"""Encoded rows on disk: token ids and labels in flat arrays, read from the file row by row."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import numpy as np

from luthier.data.store import DataFolder, Examples, OnDisk, Records
from luthier.rendering.row import Row

TOKEN = "i"
"""Type of a token id or label on disk: int32."""
BLOCK = 10_000  # rows that are searched at once
PER_ROW = {"lengths": "I", "cut": "I", "learned": "I", "owner": "Q"}
"""Arrays of `Encoded` and `Rows` with one number per row: tokens, tokens cut, tokens learned, number of the example."""


@dataclass(slots=True)
class Encoded:
    """The rows of some examples, in order and flat."""

    ids: "array[int]" = field(default_factory=partial(array, TOKEN))
    labels: "array[int]" = field(default_factory=partial(array, TOKEN))
    label_lengths: "array[int]" = field(default_factory=partial(array, "I"))
    lengths: "array[int]" = field(default_factory=partial(array, "I"))
    cut: "array[int]" = field(default_factory=partial(array, "I"))
    learned: "array[int]" = field(default_factory=partial(array, "I"))
    owner: "array[int]" = field(default_factory=partial(array, "Q"))

    def add(self, row: Row, owner: int) -> None:
        """Append a row; `owner` is the number of its example."""
        self.ids.extend(row.ids)
        self.labels.extend(row.labels)
        self.label_lengths.append(len(row.labels))
        self.lengths.append(len(row.ids))
        self.cut.append(row.cut)
        self.learned.append(row.learned)
        self.owner.append(owner)


class Rows(OnDisk[Row]):
    """The rows of one side. In memory are some tens of bytes for each."""

    lengths: "array[int]"
    cut: "array[int]"
    learned: "array[int]"
    owner: "array[int]"

    def __init__(self, folder: DataFolder, side: str) -> None:
        self.side = side
        self._ids, self._labels = Records(folder, f"{side}.ids"), Records(folder, f"{side}.labels")
        self.examples: Examples | None = None
        """The examples of the rows, once all rows are added."""
        for name, code in PER_ROW.items():
            setattr(self, name, array(code))

    def extend(self, rows: Encoded, owner: Sequence[int]) -> None:
        """Append rows; `owner` has the number of each row's example among those that stay."""
        for records, flat, lengths in (
            (self._ids, rows.ids, rows.lengths),
            (self._labels, rows.labels, rows.label_lengths),
        ):
            begin = records.ends[-1]
            records.extend(flat.tobytes(), (begin + flat.itemsize * end for end in accumulate(lengths)))
        self.lengths.extend(rows.lengths)
        self.cut.extend(rows.cut)
        self.learned.extend(rows.learned)
        self.owner.extend(owner)

    def state(self) -> "dict[str, array[int]]":
        """What `restored` needs beside the files. Closes the files."""
        self._ids.close()
        self._labels.close()
        arrays = {name: getattr(self, name) for name in PER_ROW}
        arrays |= {"ids_ends": self._ids.ends, "labels_ends": self._labels.ends}
        return {f"{self.side}.{name}": numbers for name, numbers in arrays.items()}

    @classmethod
    def restored(cls, folder: DataFolder, side: str, arrays: "Mapping[str, array[int]]") -> "Rows":
        """The rows whose files are in `folder`."""
        rows = cls(folder, side)
        for name in PER_ROW:
            setattr(rows, name, arrays[f"{side}.{name}"])
        rows._ids.ends, rows._labels.ends = arrays[f"{side}.ids_ends"], arrays[f"{side}.labels_ends"]
        return rows

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, number: int) -> Row:
        ids, labels = (array(TOKEN, records[number]).tolist() for records in (self._ids, self._labels))
        return Row(ids, labels, self.where(number), self.cut[number])

    def containing(self, tokens: set[int], *, learned: bool = False) -> Iterator[int]:
        """Numbers of the rows with one of these tokens, or that learn one; the first token of a row is not a target."""
        records, skip = (self._labels, 1) if learned else (self._ids, 0)
        ends = np.frombuffer(records.ends, np.uint64).astype(np.int64) // array(TOKEN).itemsize
        for begin in range(0, len(self), BLOCK):
            marks = ends[begin : begin + BLOCK + 1]
            flat = np.frombuffer(records.between(begin, begin + len(marks) - 1), np.int32)
            hits = np.flatnonzero(np.isin(flat, list(tokens))) + marks[0]
            rows = np.searchsorted(marks, hits, side="right") - 1
            yield from (begin + np.unique(rows[hits - marks[rows] >= skip])).tolist()

    def where(self, number: int) -> str:
        """File and line of a row's example."""
        return self.examples.where(self.owner[number]) if self.examples is not None else ""
