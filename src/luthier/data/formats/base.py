"""The base of formats: the names of the columns, and how one row becomes an example."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from luthier.core.errors import did_you_mean
from luthier.core.registry import Family, Plugin
from luthier.rendering.example import Example, Message, RowError, chat, sound
from luthier.rendering.tools import read_calls, read_result, read_tools, without_foreign_nulls


class Format(Plugin):
    """A layout of rows. Its fields name columns, so that other names need no conversion."""

    required: ClassVar[tuple[str, ...]] = ("matches", "read")

    order: ClassVar[int] = 100
    """Detection tries formats with a low number first: the more particular, the lower."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Does this row have the columns of the format?"""
        raise NotImplementedError

    def certain(self, row: Mapping[str, Any]) -> bool:
        """Do the columns that match suffice to choose the format, whatever other columns there are?"""
        return True

    def read(self, row: Mapping[str, Any]) -> Example:
        """The row as an example; RowError where the row lacks something."""
        raise NotImplementedError

    def unlearned(self) -> tuple[str, str]:
        """What in these rows no task can learn yet, and the setting that learns the rest; ('', '') for most formats."""
        return "", ""


TEXT_PARTS = ("text", "input_text", "output_text", None)
"""Types of the parts of a message that are text; a part may also have no type."""


def column(row: Mapping[str, Any], name: str, *, key: str = "") -> Any:
    """`row[name]`, or with `answers.text.0` the first item of `text` within the column `answers`.

    RowError names the columns there are, and the recipe key that chooses another.
    """
    if name in row:
        return row[name]
    if name.partition(".")[0] not in row:
        columns = ", ".join(map(str, row)) or "none"
        fix = f"name the column with data.format.{key}=COLUMN" if key else ""
        raise RowError(f"there is no column {name!r}{did_you_mean(name, row)}; the row has {columns}", fix=fix)
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise RowError(f"there is no {name}: nothing is at {part!r}")
    return value


def text_of(value: Any, name: str) -> str:
    """A string, or the text parts of OpenAI's content list, as one string; RowError for anything else."""
    if isinstance(value, list):
        for part in value:
            if isinstance(part, Mapping) and part.get("type", "text") not in TEXT_PARTS:
                raise RowError(f"{name} has parts that are not text, of type {part['type']!r:.40}")
        parts = [part.get("text", part.get("value")) if isinstance(part, Mapping) else part for part in value]
        if not all(isinstance(part, str) for part in parts):
            raise RowError(f"{name} has parts that are not text")
        value = "".join(str(part) for part in parts)
    if value is None:
        raise RowError(f"{name} is null")
    if not isinstance(value, str):
        raise RowError(f"{name} should be text, not {type(value).__name__}")
    return sound(value, name)


def optional_text(row: Mapping[str, Any], name: str) -> str:
    """Text of a column that may be missing, null or empty; a number there is an error."""
    value = row.get(name)
    return "" if value is None else text_of(value, name)


CALL = "function_call"
"""The role of a turn whose text is its tool calls, before it becomes the assistant's."""
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SPEAKERS |= {"tool": "tool", "function": "tool", "observation": "tool", CALL: CALL}
"""Speaker in OpenAI's or ShareGPT's words -> role of a Message."""


def message_of(turn: Mapping[str, Any], role: str, key: str, where: str) -> Message:
    """One turn, whose text is at `key`, as a message; `role` is that of a Message, or CALL."""
    value = turn.get(key)
    if role == CALL:
        text = text_of(value, f"{key} of {where}")
        thought, end, text = text.rpartition("</think>")  # LLaMA-Factory's rows may think before they call
        return Message("assistant", thought + end, tool_calls=read_calls(text, where))
    if role == "tool":
        text = text_of(read_result(value), f"{key} of {where}")
        return Message(role, text, name=optional_text(turn, "name"), tool_call_id=optional_text(turn, "tool_call_id"))
    given = turn.get("tool_calls") or turn.get("function_call")
    if isinstance(value, list) and not given:  # LLaMA-Factory's parts of a turn
        called = [isinstance(part, Mapping) and part.get("type") == "tool_call" and "value" in part for part in value]
        given = [part["value"] for part, call in zip(value, called, strict=True) if call]
        value = [part for part, call in zip(value, called, strict=True) if not call]
    calls = read_calls(given, where) if given else ""
    return Message(role, "" if calls and value is None else text_of(value, f"{key} of {where}"), tool_calls=calls)


def turns_of(value: Any, name: str, speaker: str = "", text: str = "", known: Any = SPEAKERS) -> list[Message]:
    """A turn or a list of turns, each with `role` and `content`, with `from` and `value`, or with these keys."""
    if not isinstance(value, list | Mapping):
        raise RowError(f"{name} should be a list of turns, not {type(value).__name__}")
    made = []
    keys = {speaker: text} if speaker else {"role": "content", "from": "value"}
    for number, turn in enumerate(value if isinstance(value, list) else [value], 1):
        key = next((key for key in keys if isinstance(turn, Mapping) and key in turn), None)
        if key is None:
            raise RowError(f"turn {number} of {name} has no {next(iter(keys))}")
        role = known.get(str(turn[key]))
        if role is None:
            raise RowError(f"turn {number} of {name}: unknown role {turn[key]!r}; known are {', '.join(known)}")
        made.append(message_of(turn, role, keys[key], f"turn {number}" if speaker else f"turn {number} of {name}"))
    return made


def turns_or_text(row: Mapping[str, Any], name: str, role: str, *, key: str, material: str = "") -> list[Message]:
    """The turns of a column; a text there becomes a turn of this role, with the text of column `material` after it."""
    value = column(row, name, key=key)
    more = optional_text(row, material) if material else ""
    if isinstance(value, list | Mapping) and not more:
        return turns_of(value, name)
    return [Message(role, text_of(value, name) + (f"\n{more}" if more else ""))]


def system_of(row: Mapping[str, Any], name: str) -> list[Message]:
    """The system message of a column that may be missing or empty."""
    text = optional_text(row, name)
    return [Message("system", text)] if text else []


def tools_of(row: Mapping[str, Any], name: str) -> str:
    """The tools on offer, as an example has them; OpenAI's older `functions` are found too."""
    name = "functions" if name == "tools" and not row.get(name) and row.get("functions") else name
    return read_tools(row.get(name), name)


def dialogue_of(turns: Sequence[Message], tools: str) -> tuple[Message, ...]:
    """The turns as a dialogue of an example with these tools."""
    return chat(without_foreign_nulls(turns, tools) if tools else turns)


def label_of(value: Any, name: str) -> str:
    """A class label as text: `1`, `1.0` and `"1"` are the class "1"."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError(f"{name} is empty")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RowError(f"{name} is {value}, which is not a class")
        value = int(value) if value.is_integer() else value
    if not isinstance(value, str | int | float):
        raise RowError(f"{name} should be a text or a number, not {type(value).__name__}")
    return sound(str(value).strip(), name)


FORMATS = Family(Format, "format")
