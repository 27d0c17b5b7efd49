"""Parquet: tables by columns, compressed inside."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from luthier.data.file_types.base import FileType
from luthier.data.reading.arrow_rows import read_parquet
from luthier.data.reading.rows import RawRow


class Parquet(FileType):
    """Tables stored by columns; compressed inside."""

    text: ClassVar[bool] = False

    def rows(self, file: Path, columns: Sequence[str]) -> Iterator[RawRow]:
        return read_parquet(file)
