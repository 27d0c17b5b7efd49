"""Plain text: documents separated by empty lines; a text without any is one document."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from luthier.data.file_types.base import LINE_LIMIT, SHOWN, FileType, RawRow, encoding_of, lines, too_long


class Txt(FileType):
    """Each document is a row with one column, text."""

    empty: ClassVar[str] = "has no text"

    def rows(self, file: Path, columns: Sequence[str]) -> Iterator[RawRow]:
        kept: list[str] = []
        start = size = 0
        problem = ""
        for number, line, length, fault in itertools.chain(lines(file, encoding_of(file)), [(0, "", 0, "")]):
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
                yield RawRow(f"{file}: line {start}", {"raw" if problem else "text": document}, problem)
            kept, start, size, problem = [], 0, 0, ""
