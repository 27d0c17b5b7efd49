"""Messages: OpenAI's chat layout, a list of turns with `role` and `content`."""

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.data.formats.base import Format, column, dialogue_of, message_of, tools_of
from luthier.rendering.example import Example, RowError


class Messages(Format):
    """Rows with a `messages` list; every assistant turn is learned, tool calls too."""

    order: ClassVar[int] = 10

    messages: str = "messages"
    """Column that holds the list of turns."""
    tools: str = "tools"
    """Column of the tools on offer, a list or its JSON; may be missing or empty."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        turns = row.get(self.messages)
        return isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and "role" in turns[0]

    def read(self, row: Mapping[str, Any]) -> Example:
        turns = column(row, self.messages, key="messages")
        if not isinstance(turns, list):
            raise RowError(f"{self.messages} should be a list of turns, not {type(turns).__name__}")
        made = []
        for number, turn in enumerate(turns, 1):
            if not isinstance(turn, Mapping) or "role" not in turn:
                raise RowError(f"turn {number} of {self.messages} has no role")
            role = str(turn["role"])
            made.append(message_of(turn, "tool" if role == "function" else role, "content", f"turn {number}"))
        tools = tools_of(row, self.tools)
        return Example(messages=dialogue_of(made, tools), tools=tools)
