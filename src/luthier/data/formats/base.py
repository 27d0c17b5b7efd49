"""What a format is: the names of its columns, and how one row becomes an example."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.data.example import Example, RowError
from luthier.errors import did_you_mean
from luthier.plugins import Family, Plugin


class Format(Plugin):
    """A layout of rows. Its fields name columns, so that other names need no conversion."""

    order: ClassVar[int] = 100
    """Detection tries formats with a low number first: the more particular, the lower."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Does this row have the columns of the format?"""
        raise NotImplementedError

    def read(self, row: Mapping[str, Any]) -> Example:
        """The row as an example; RowError says what the row lacks."""
        raise NotImplementedError

    def unlearned(self) -> tuple[str, str]:
        """What in these rows no task can learn, and the setting that learns what can be; mostly ('', '')."""
        return "", ""


def column(row: Mapping[str, Any], name: str, *, key: str = "") -> Any:
    """`row[name]`; RowError names the columns there are, and the recipe key that chooses another."""
    if name not in row:
        mend = f"name the column with data.format.{key}=COLUMN" if key else ""
        raise RowError(
            f"there is no column {name!r}{did_you_mean(name, row)}; the row has {', '.join(map(str, row)) or 'none'}",
            mend=mend,
        )
    return row[name]


def text_of(value: Any, name: str) -> str:
    """A string, or the text parts of OpenAI's content list, as one string; RowError for anything else."""
    if isinstance(value, list):
        parts = [part.get("text", part.get("value")) if isinstance(part, Mapping) else part for part in value]
        if not all(isinstance(part, str) for part in parts):
            raise RowError(f"{name} has parts that are no text")
        value = "".join(str(part) for part in parts)
    if value is None:
        raise RowError(f"{name} is null")
    if not isinstance(value, str):
        raise RowError(f"{name} should be text, not {type(value).__name__}")
    return _sound(value, name)


def optional_text(row: Mapping[str, Any], name: str) -> str:
    """Text of a column that may be missing, null or empty; a number there is a mistake and not nothing."""
    value = row.get(name)
    return "" if value is None else text_of(value, name)


SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Who speaks, in OpenAI's and ShareGPT's words -> our role."""
TOOLS = "which this version cannot train on"


def turns_of(value: Any, name: str) -> list[tuple[str, str]]:
    """(role, content) of a turn or a list of turns, each with `role` and `content` or with `from` and `value`."""
    pairs = []
    for number, turn in enumerate(value if isinstance(value, list) else [value], 1):
        keys = next((keys for keys in (("role", "content"), ("from", "value")) if keys[0] in turn), None) if (
            isinstance(turn, Mapping)
        ) else None  # fmt: skip
        if keys is None:
            raise RowError(f"turn {number} of {name} has no role")
        if turn.get("tool_calls") or turn.get("function_call"):
            raise RowError(f"turn {number} of {name} calls a tool, {TOOLS}")
        role = SPEAKERS.get(str(turn[keys[0]]))
        if role is None:
            raise RowError(f"turn {number} of {name}: unknown role {turn[keys[0]]!r}; known are {', '.join(SPEAKERS)}")
        pairs.append((role, text_of(turn.get(keys[1]), f"{keys[1]} of turn {number} of {name}")))
    return pairs


def question_of(value: Any, name: str, material: str = "") -> list[tuple[str, str]]:
    """A prompt as turns: a text becomes the user's turn, with `material` behind it."""
    if isinstance(value, list | Mapping) and not material:
        return turns_of(value, name)
    return [("user", text_of(value, name) + (f"\n{material}" if material else ""))]


def answer_of(value: Any, name: str) -> list[tuple[str, str]]:
    """An answer as turns: a text becomes the assistant's turn."""
    return turns_of(value, name) if isinstance(value, list | Mapping) else [("assistant", text_of(value, name))]


def no_tools(row: Mapping[str, Any], name: str) -> None:
    """RowError for a row that offers tools: without them its answers would be learned to another question."""
    tools = row.get(name)
    if tools and not (isinstance(tools, str) and tools.strip() in ("", "[]", "null")):
        raise RowError(f"{name} offers tools, {TOOLS}")


def label_of(value: Any, name: str) -> str:
    """A class label as text: `1`, `1.0` and `"1"` are the class "1"."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError(f"{name} is empty")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RowError(f"{name} is {value}, which is no class")
        value = int(value) if value.is_integer() else value
    if not isinstance(value, str | int | float):
        raise RowError(f"{name} should be a text or a number, not {type(value).__name__}")
    return _sound(str(value).strip(), name)


def _sound(text: str, name: str) -> str:
    """The text, where a tokenizer can take it: some stop at a NUL, and none can encode half a character."""
    if "\0" in text:
        raise RowError(f"{name} holds a NUL character, as damaged files and binary data do")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError(f"{name} holds half a character (a lone surrogate such as \\ud800)") from None
    return text


FORMATS = Family(Format, "format")
