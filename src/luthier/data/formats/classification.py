"""Classification: a text (or a pair of texts) and its label.

With task `classify` a head learns the label. With task `chat` the text becomes a question and the
label, in words, the answer: then give `names` for numeric labels, and a `prompt` with the instruction.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import field_validator

from luthier.data.formats.base import Format, column, label_of, optional_text, text_of
from luthier.rendering.example import Example, Message, RowError


class Classification(Format):
    """Rows with a text and a label."""

    order: ClassVar[int] = 50

    text: str = "text"
    """Column of the text; `sentence` and `sentence1` are found too."""
    pair: str = "sentence2"
    """Column of the second text of a sentence pair; may be missing."""
    label: str = "label"
    """Column of the label; `label_text` is found too."""
    names: tuple[str, ...] = ()
    """Words for numeric labels, in order: [negative, positive] reads 0 as negative."""
    prompt: str = "Classify this text.\n\n{text}"
    """What task `chat` asks; {text} stands for the text."""

    @field_validator("prompt")
    @classmethod
    def _has_text(cls, value: str) -> str:
        if "{text}" not in value:
            raise ValueError("must contain {text}, where the row's text goes")
        return value

    def _columns(self, row: Mapping[str, Any]) -> tuple[str, str]:
        text, label = self.text, self.label
        if text not in row and text == "text":
            text = next((name for name in ("sentence", "sentence1") if name in row), text)
        if label not in row and label == "label" and "label_text" in row:
            label = "label_text"
        return text, label

    def matches(self, row: Mapping[str, Any]) -> bool:
        text, label = self._columns(row)
        return text in row and label in row

    def certain(self, row: Mapping[str, Any]) -> bool:
        # A lone sentence may be half of a pair, whose other half has another name; a list is not a label.
        text, label = self._columns(row)
        return (text != "sentence" or self.pair in row) and not isinstance(row[label], list)

    def read(self, row: Mapping[str, Any]) -> Example:
        text_column, label_column = self._columns(row)
        text = text_of(column(row, text_column, key="text"), text_column)
        pair = optional_text(row, self.pair)
        label = label_of(column(row, label_column, key="label"), label_column)
        if not text.strip():
            raise RowError(f"{text_column} is empty")
        if self.names and label not in self.names:
            if label not in map(str, range(len(self.names))):
                raise RowError(f"label {label!r} is neither one of {', '.join(self.names)} nor their number")
            label = self.names[int(label)]
        question = self.prompt.replace("{text}", f"{text}\n{pair}" if pair else text)
        messages = (Message("user", question), Message("assistant", label, learn=True))
        return Example(messages=messages, text=text, pair=pair, label=label)
