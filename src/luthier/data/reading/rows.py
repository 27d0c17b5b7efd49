"""Rows of csv, tsv and plain text. What is not a row is reported, not dropped."""

import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError
from luthier.data.reading.files import LINE_LIMIT, SHOWN, lines, too_long

TEXT_ROW = "text"  # the column that a document of plain text becomes


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row of a file. `problem` is why it is not a row at all; then `values` holds its raw text."""

    where: str
    values: Mapping[str, Any]
    problem: str = ""


class _Feed:
    """Lines for csv.reader, and where the current row begins: a quoted text may run over several lines."""

    def __init__(self, file: Path, encoding: str) -> None:
        self._file, self._encoding = file, encoding
        self._line = 0
        self.begin()

    def begin(self) -> None:
        """A new row begins."""
        self.start, self.size, self.fault = 0, 0, ""

    def lines(self) -> Iterator[str]:
        """Each line with its end; DataError where the row grows over the limit."""
        for _, text, size, fault in lines(self._file, self._encoding):
            self.start = self.start or self._line + 1
            self.size += size
            self.fault = self.fault or fault
            if self.size > LINE_LIMIT:
                raise DataError(
                    f"{self._file}: line {self.start}: the row that begins here {too_long(self.size)} or longer",
                    fix="check its quotes: one that is not closed swallows what follows",
                )
            # Files of old Macs end their lines with \r alone.
            yield from map(self._counted, io.StringIO(text, newline="") if "\r" in text[:-2] else [text])

    def _counted(self, line: str) -> str:
        self._line += 1
        self.start = self.start or self._line
        return line


def read_table(file: Path, encoding: str, *, tab: bool, columns: Sequence[str] = ()) -> Iterator[RawRow]:
    """Rows of a csv or tsv file with a header, or with these columns; every cell stays text."""
    csv.field_size_limit(LINE_LIMIT)  # for the whole process; the default of 131,072 would refuse valid long texts
    feed = _Feed(file, encoding)
    source = feed.lines()
    header = next((line for line in source if line.strip()), "")
    delimiter = "\t" if tab else max(",;\t|", key=header.count)
    reader = csv.reader(itertools.chain([header], source), delimiter=delimiter, strict=True)
    names = list(columns) or _header(file, reader, feed)
    count = 0
    feed.begin()
    while (cells := _cells(file, reader, feed)) is not None:
        where = f"{file}: line {feed.start}"
        if feed.fault:
            yield RawRow(where, {"raw": cells}, feed.fault)
        elif cells and len(cells) != len(names):
            why = f"has {len(cells)} cells, the header {len(names)}: a {delimiter!r} in a text needs quotes around it"
            yield RawRow(where, {"raw": cells}, why)
        elif cells:
            yield RawRow(where, dict(zip(names, cells, strict=True)))
        count += bool(cells)
        feed.begin()
    if count == 0:
        raise DataError(f"{file}: the file has a header and no rows", fix="give a file with at least one row")


def _header(file: Path, reader: Iterator[list[str]], feed: _Feed) -> list[str]:
    """The names of the columns; one without a name is called by its number."""
    cells = _cells(file, reader, feed) or []
    names = [name.strip() or f"column{number}" for number, name in enumerate(cells, 1)]
    if not names:
        raise DataError(f"{file}: the file has no header line", fix="name the columns in the first line")
    if feed.fault:
        raise DataError(f"{file}: line {feed.start}: {feed.fault}", fix="fix the header")
    if len(set(names)) != len(names):
        raise DataError(
            f"{file}: line {feed.start}: two columns have the same name",
            fix="name each column once; if this line is a row, data.columns=[NAME,NAME] names the columns",
        )
    return names


def _cells(file: Path, reader: Iterator[list[str]], feed: _Feed) -> list[str] | None:
    """The next row, None after the last. After a fault in the quotes no row is certain: DataError."""
    try:
        return next(reader, None)
    except csv.Error as error:
        why = str(error)
        if "unexpected end" in why:
            why = "a quote opens in the row that begins here and is never closed; the rest of the file is inside it"
        raise DataError(
            f"{file}: line {feed.start}: {why}", fix='check the quotes there; a " in a quoted text is written ""'
        ) from None


def read_text(file: Path, encoding: str) -> Iterator[RawRow]:
    """Plain text: empty lines separate the documents; a text without any is one document."""
    kept: list[str] = []
    start = size = 0
    problem = ""
    found = False
    for number, line, length, fault in itertools.chain(lines(file, encoding), [(0, "", 0, "")]):
        text = line.removesuffix("\n").removesuffix("\r")
        if text:
            start, size, problem = start or number, size + length, problem or fault
            kept.append(text)
            if size > LINE_LIMIT:
                kept = [kept[0][:SHOWN]]
            continue
        document = "\n".join(kept)
        if size > LINE_LIMIT:
            problem = too_long(size)
        if document.strip():
            found = True
            yield RawRow(f"{file}: line {start}", {"raw" if problem else TEXT_ROW: document}, problem)
        kept, start, size, problem = [], 0, 0, ""
    if not found:
        raise DataError(f"{file}: the file has no text", fix="give a file with at least one line")
