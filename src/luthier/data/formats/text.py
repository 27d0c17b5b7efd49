"""Text: one column of plain text, all of it learned."""

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.data.formats.base import Format, column, text_of
from luthier.rendering.example import Example, RowError


class Text(Format):
    """Rows of plain text, for task `complete`."""

    order: ClassVar[int] = 90

    text: str = "text"
    """Column of the text."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        return self.text in row

    def certain(self, row: Mapping[str, Any]) -> bool:
        return len(row) == 1  # beside other columns a text may have a label, a summary, ...

    def read(self, row: Mapping[str, Any]) -> Example:
        text = text_of(column(row, self.text, key="text"), self.text)
        if not text.strip():
            raise RowError(f"{self.text} is empty")
        return Example(text=text)
