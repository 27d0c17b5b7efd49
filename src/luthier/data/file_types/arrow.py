"""Arrow: files and streams of record batches, as datasets keeps them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from luthier.data.file_types.base import FileType
from luthier.data.reading.arrow_rows import read_arrow
from luthier.data.reading.rows import RawRow


class Arrow(FileType):
    """Record batches, as the datasets library keeps them on disk."""

    text: ClassVar[bool] = False

    def rows(self, file: Path, columns: Sequence[str]) -> Iterator[RawRow]:
        return read_arrow(file)
