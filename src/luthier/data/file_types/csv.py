"""Tables as text: columns separated by commas (csv) or tabs (tsv)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from luthier.data.file_types.base import FileType
from luthier.data.reading.files import encoding_of
from luthier.data.reading.rows import RawRow, read_table


class Csv(FileType):
    """The first line names the columns, unless data.columns does."""

    headless: ClassVar[bool] = True

    tab: bool = False
    """Separate columns by tabs."""

    def rows(self, file: Path, columns: Sequence[str]) -> Iterator[RawRow]:
        return read_table(file, encoding_of(file), tab=self.tab, columns=columns)
