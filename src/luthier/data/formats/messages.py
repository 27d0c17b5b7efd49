"""Messages: OpenAI's chat layout, a list of turns with `role` and `content`."""

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.data.formats.base import Format, column, dialogue_of, tools_of, turns_of
from luthier.rendering.example import ROLES, Example

KNOWN = {**{role: role for role in ROLES}, "function": "tool"}


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
        tools = tools_of(row, self.tools)
        made = turns_of(turns, self.messages, "role", "content", KNOWN)
        return Example(messages=dialogue_of(made, tools), tools=tools)
