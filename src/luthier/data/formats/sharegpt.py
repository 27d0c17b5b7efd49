"""ShareGPT: a `conversations` list of turns with `from` (human, gpt, system) and `value`."""

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.data.formats.base import CALL, SPEAKERS, Format, column, dialogue_of, system_of, tools_of, turns_of
from luthier.rendering.example import Example
from luthier.rendering.tools import split_results


class ShareGPT(Format):
    """Rows with a `conversations` list; every gpt turn is learned, and every tool call."""

    order: ClassVar[int] = 20

    conversations: str = "conversations"
    """Column that holds the list of turns."""
    system: str = "system"
    """Column of the system message; may be missing or empty."""
    tools: str = "tools"
    """Column of the tools on offer, a list or its JSON; may be missing or empty."""
    speaker: str = "from"
    """Key of the speaker of a turn."""
    value: str = "value"
    """Key of the text of a turn."""
    user: str = "human"
    """The user's name in the turns; beside it the usual ones are known: human, user, gpt, assistant, system."""
    assistant: str = "gpt"
    """The assistant's name."""
    system_speaker: str = "system"
    """The speaker of the system message."""
    tool_call: str = "function_call"
    """The speaker of a turn that calls tools: its text is JSON, {"name", "arguments"} or a list of them."""
    tool_result: str = "observation"
    """The speaker of a turn with the result of a tool; for several calls, a JSON list."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        turns = row.get(self.conversations)
        return isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and self.speaker in turns[0]

    def read(self, row: Mapping[str, Any]) -> Example:
        turns = column(row, self.conversations, key="conversations")
        known = {**SPEAKERS, self.user: "user", self.assistant: "assistant", self.system_speaker: "system"}
        known |= {self.tool_call: CALL, self.tool_result: "tool"}
        made = system_of(row, self.system)
        made += turns_of(turns, self.conversations, self.speaker, self.value, known)
        tools = tools_of(row, self.tools)
        return Example(messages=dialogue_of(split_results(made), tools), tools=tools)
