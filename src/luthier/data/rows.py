"""Encoded rows on disk: the token ids and labels of all rows in one file, read from it row by row."""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from luthier.data.store import DataFolder, Examples, OnDisk, Records
from luthier.rendering.example import RowError
from luthier.rendering.row import Row

TOKEN = "i"
"""Type of a token id or label on disk: int32."""
BLOCK = 10_000  # rows that are searched at once
NUMBERS = {"ends": "Q", "lengths": "I", "cut": "I", "learned": "I", "owner": "Q", "kept": "Q"}
"""Arrays of `Rows` that are in memory, with their types."""


@dataclass(slots=True)
class Encoded:
    """The rows of some examples, in order and flat, and the examples that gave none."""

    flat: "array[int]" = field(default_factory=partial(array, TOKEN))
    """The token ids of each row, then its labels."""
    ends: "array[int]" = field(default_factory=partial(array, "Q"))
    """Where each row ends in `flat`."""
    lengths: "array[int]" = field(default_factory=partial(array, "I"))
    """Tokens of each row."""
    cut: "array[int]" = field(default_factory=partial(array, "I"))
    """Tokens that were cut from each row."""
    learned: "array[int]" = field(default_factory=partial(array, "I"))
    """Tokens of each row that carry loss."""
    owner: "array[int]" = field(default_factory=partial(array, "Q"))
    """Number of each row's example among those that have rows."""
    kept: "array[int]" = field(default_factory=partial(array, "Q"))
    """Places of the examples that have rows among all examples."""
    failures: dict[int, tuple[RowError, int]] = field(default_factory=dict)
    """Place of each other example -> its error, and the tokens of its longest row where that is too long."""
    whole: "array[int]" = field(default_factory=partial(array, "I"))
    """Tokens of each row without the limit, where they were asked for."""

    def add(self, row: Row, owner: int) -> None:
        """Append a row; `owner` is the number of its example."""
        self.flat.extend(row.ids)
        self.flat.extend(row.labels)
        self.ends.append(len(self.flat))
        self.lengths.append(len(row.ids))
        self.cut.append(row.cut)
        self.learned.append(row.learned)
        self.owner.append(owner)


class Rows(OnDisk[Row]):
    """The rows of one side. In memory are some tens of bytes for each: the arrays of `Encoded`."""

    def __init__(self, folder: DataFolder, side: str, kept: "Mapping[str, array[int]] | None" = None) -> None:
        """Without rows, or with those whose file is in `folder`: then `kept` is what `state` returned."""
        arrays = {name: kept[f"{side}.{name}"] if kept else array(code) for name, code in NUMBERS.items()}
        self.side, self._records = side, Records(folder, f"{side}.rows", arrays["ends"])
        self.lengths, self.cut, self.learned = arrays["lengths"], arrays["cut"], arrays["learned"]
        self.owner, self.kept = arrays["owner"], arrays["kept"]
        self.examples: Examples | None = None
        """The examples of the rows, once all rows are added."""

    @classmethod
    def of(cls, side: str, examples: Examples, rows: Iterable[tuple[int, Row]]) -> "Rows":
        """These rows, each after the number of its example in `examples`."""
        made, encoded = cls(DataFolder(), side), Encoded()
        for owner, row in rows:
            encoded.add(row, owner)
        made.extend(encoded)
        made.examples = examples
        return made

    def extend(self, rows: Encoded, begin: int = 0) -> None:
        """Append the rows of the examples from place `begin` on."""
        start, size = self._records.ends[-1], rows.flat.itemsize
        self._records.extend(rows.flat.tobytes(), (start + size * end for end in rows.ends))
        self.lengths.extend(rows.lengths)
        self.cut.extend(rows.cut)
        self.learned.extend(rows.learned)
        before = len(self.kept)
        self.owner.extend(before + owner for owner in rows.owner)
        self.kept.extend(begin + place for place in rows.kept)

    def state(self) -> "dict[str, array[int]]":
        """The arrays of the rows, for another start. Closes the file."""
        self._records.close()
        arrays = {"ends": self._records.ends} | {name: getattr(self, name) for name in NUMBERS if name != "ends"}
        return {f"{self.side}.{name}": numbers for name, numbers in arrays.items()}

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, number: int) -> Row:
        both, length = array(TOKEN, self._records[number]).tolist(), self.lengths[number]
        return Row(both[:length], both[length:], self.where(number), self.cut[number])

    def containing(self, tokens: set[int], *, learned: bool = False) -> Iterator[int]:
        """Numbers of the rows with one of these tokens, or that learn one; the first token of a row is not a target."""
        ends = np.frombuffer(self._records.ends, np.uint64).astype(np.int64) // array(TOKEN).itemsize
        for begin in range(0, len(self), BLOCK):
            marks = ends[begin : begin + BLOCK + 1]
            flat = np.frombuffer(self._records.between(begin, begin + len(marks) - 1), np.int32)
            hits = np.flatnonzero(np.isin(flat, list(tokens))) + marks[0]
            rows = np.searchsorted(marks, hits, side="right") - 1
            places = hits - marks[rows] - np.frombuffer(self.lengths, np.uint32).astype(np.int64)[begin + rows]
            yield from (begin + np.unique(rows[places > 0 if learned else places < 0])).tolist()

    def where(self, number: int) -> str:
        """File and line of a row's example."""
        return self.examples.where(self.owner[number]) if self.examples is not None else ""
