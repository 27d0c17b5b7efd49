"""What a file type is: how rows come out of a file with its suffix."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from luthier.core.registry import Family, Plugin
from luthier.data.reading.rows import RawRow


class FileType(Plugin):
    """A kind of data file; its name is the suffix without the dot."""

    required: ClassVar[tuple[str, ...]] = ("rows",)

    text: ClassVar[bool] = True
    """Is it text in some encoding? Then it may also be compressed: NAME.csv.gz."""
    headless: ClassVar[bool] = False
    """May it lack the line of column names, which data.columns gives then?"""

    def rows(self, file: Path, columns: Sequence[str]) -> Iterator[RawRow]:
        """Every row with its place, one by one in constant memory; a bad row is reported in it and stops nothing."""
        raise NotImplementedError


FILE_TYPES = Family(
    FileType,
    "kind of file",
    presets={
        "json": ("jsonl", {}),
        "ndjson": ("jsonl", {}),
        "tsv": ("csv", {"tab": True}),
        "feather": ("arrow", {}),
        "ipc": ("arrow", {}),
    },
)
