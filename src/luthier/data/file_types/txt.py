"""Plain text: documents separated by empty lines; a text without any is one document."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.data.file_types.base import FileType
from luthier.data.reading.files import encoding_of
from luthier.data.reading.rows import RawRow, read_text


class Txt(FileType):
    """Each document is a row with one column, text."""

    def rows(self, file: Path, columns: Sequence[str]) -> Iterator[RawRow]:
        return read_text(file, encoding_of(file))
