"""What a file type is: how rows come out of a file with its suffix."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from luthier.core.registry import Family, Plugin


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row of a file. `problem` is why it is not a row at all; then `values` holds its raw text."""

    where: str
    values: Mapping[str, Any]
    problem: str = ""


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
        **dict.fromkeys(("json", "ndjson"), ("jsonl", {})),
        **dict.fromkeys(("feather", "ipc"), ("arrow", {})),
        "tsv": ("csv", {"tab": True}),
    },
)
