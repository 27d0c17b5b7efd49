"""Tables as text: columns separated by commas (csv) or tabs (tsv)."""

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from luthier.core.errors import DataError
from luthier.data.file_types.base import LINE_LIMIT, FileType, RawRow, encoding_of, lines, too_long


class Csv(FileType):
    """The first line names the columns, unless data.columns does. Every cell stays text."""

    headless: ClassVar[bool] = True
    empty: ClassVar[str] = "has a header and no rows"

    tab: bool = False
    """Separate columns by tabs."""

    def rows(self, file: Path, columns: Sequence[str]) -> Iterator[RawRow]:
        csv.field_size_limit(LINE_LIMIT)  # for the whole process; the default of 131,072 would refuse valid long texts
        table = _Cells(file, "\t" if self.tab else ",;\t|")
        names = list(columns)
        if not names:
            line, cells, fault = next(table)
            names = [name.strip() or f"column{number}" for number, name in enumerate(cells, 1)]
            if not names:
                raise DataError(f"{file}: the file has no header line", fix="name the columns in the first line")
            if fault:
                raise DataError(f"{file}: line {line}: {fault}", fix="fix the header")
            if len(set(names)) != len(names):
                fix = "name each column once; if this line is a row, data.columns=[NAME,NAME] names the columns"
                raise DataError(f"{file}: line {line}: two columns have the same name", fix=fix)
        for line, cells, broken in table:
            fault = broken
            if not fault and cells and len(cells) != len(names):
                fault = f"has {len(cells)} cells, the header {len(names)}: "
                fault += f"a {table.delimiter!r} in a text needs quotes around it"
            if fault or cells:
                row = {"raw": cells} if fault else dict(zip(names, cells, strict=True))
                yield RawRow(f"{file}: line {line}", row, fault)


class _Cells(Iterator[tuple[int, list[str], str]]):
    """(line, cells, fault) of each row of a table. A quoted text may run over several lines: the first one counts."""

    def __init__(self, file: Path, delimiters: str) -> None:
        self._file, self._line = file, 0
        self._start, self._size, self._fault = 0, 0, ""
        source = self._lines()
        header = next((line for line in source if line.strip()), "")
        self.delimiter = max(delimiters, key=header.count)
        self._reader = csv.reader(itertools.chain([header], source), delimiter=self.delimiter, strict=True)

    def __next__(self) -> tuple[int, list[str], str]:
        try:
            cells = next(self._reader)
        except csv.Error as error:  # after a fault in the quotes no row is certain
            why = str(error)
            if "unexpected end" in why:
                why = "a quote opens in the row that begins here and is never closed; the rest of the file is inside it"
            fix = 'check the quotes there; a " in a quoted text is written ""'
            raise DataError(f"{self._file}: line {self._start}: {why}", fix=fix) from None
        found = self._start, cells, self._fault
        self._start, self._size, self._fault = 0, 0, ""
        return found

    def _lines(self) -> Iterator[str]:
        """Each line with its end; DataError where the row grows over the limit."""
        for _, text, size, fault in lines(self._file, encoding_of(self._file)):
            self._start = self._start or self._line + 1
            self._size += size
            self._fault = self._fault or fault
            if self._size > LINE_LIMIT:
                why = f"{self._file}: line {self._start}: the row that begins here {too_long(self._size)} or longer"
                raise DataError(why, fix="check its quotes: one that is not closed swallows what follows")
            # Files of old Macs end their lines with \r alone.
            for line in io.StringIO(text, newline="") if "\r" in text[:-2] else [text]:
                self._line += 1
                self._start = self._start or self._line
                yield line
