"""Messages: OpenAI's chat layout, a list of turns with `role` and `content`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.data.example import Example, RowError, chat
from luthier.data.formats.base import TOOLS, Format, column, no_tools, text_of


class Messages(Format):
    """Rows with a `messages` list; every assistant turn is learned."""

    order: ClassVar[int] = 10

    messages: str = "messages"
    """Column that holds the list of turns."""
    tools: str = "tools"
    """Column of the tools on offer; may be missing or empty, and a row that has some is refused."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        turns = row.get(self.messages)
        return isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and "role" in turns[0]

    def read(self, row: Mapping[str, Any]) -> Example:
        turns = column(row, self.messages, key="messages")
        if not isinstance(turns, list):
            raise RowError(f"{self.messages} should be a list of turns, not {type(turns).__name__}")
        no_tools(row, self.tools)
        pairs = []
        for number, turn in enumerate(turns, 1):
            if not isinstance(turn, Mapping) or "role" not in turn:
                raise RowError(f"turn {number} of {self.messages} has no role")
            if turn.get("tool_calls") or turn.get("function_call"):
                raise RowError(f"turn {number} calls a tool, {TOOLS}")
            pairs.append((str(turn["role"]), text_of(turn.get("content"), f"content of turn {number}")))
        return Example(messages=chat(pairs))
