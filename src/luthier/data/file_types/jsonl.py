"""JSON: an array, or one object per line, whatever the suffix."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.data.file_types.base import FileType
from luthier.data.reading.files import encoding_of
from luthier.data.reading.json_rows import read_json
from luthier.data.reading.rows import RawRow


class Jsonl(FileType):
    """Objects whose keys are the columns."""

    def rows(self, file: Path, columns: Sequence[str]) -> Iterator[RawRow]:
        return read_json(file, encoding_of(file))
