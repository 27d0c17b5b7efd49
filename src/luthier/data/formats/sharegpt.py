"""ShareGPT: a `conversations` list of turns with `from` (human, gpt, system) and `value`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.data.example import Example, RowError, chat
from luthier.data.formats.base import SPEAKERS, TOOLS, Format, column, no_tools, optional_text, text_of


class ShareGPT(Format):
    """Rows with a `conversations` list; every gpt turn is learned."""

    order: ClassVar[int] = 20

    conversations: str = "conversations"
    """Column that holds the list of turns."""
    system: str = "system"
    """Column of the system message; may be missing or empty."""
    tools: str = "tools"
    """Column of the tools on offer; may be missing or empty, and a row that has some is refused."""
    speaker: str = "from"
    """Key of a turn that says who speaks."""
    value: str = "value"
    """Key of a turn that holds its text."""
    user: str = "human"
    """The user's name in the turns; beside it the usual ones are known: human, user, gpt, assistant, system."""
    assistant: str = "gpt"
    """The assistant's name."""
    system_speaker: str = "system"
    """The name of who gives the system message."""
    tool_call: str = "function_call"
    """The name of a turn that calls a tool; such rows are refused."""
    tool_result: str = "observation"
    """The name of a turn that holds what a tool said; such rows are refused."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        turns = row.get(self.conversations)
        return isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and self.speaker in turns[0]

    def read(self, row: Mapping[str, Any]) -> Example:
        turns = column(row, self.conversations, key="conversations")
        if not isinstance(turns, list):
            raise RowError(f"{self.conversations} should be a list of turns, not {type(turns).__name__}")
        no_tools(row, self.tools)
        known = {
            **SPEAKERS, self.user: "user", self.assistant: "assistant", self.system_speaker: "system",
            self.tool_call: "tool", self.tool_result: "tool",
        }  # fmt: skip
        system = optional_text(row, self.system)
        pairs = [("system", system)] if system else []
        for number, turn in enumerate(turns, 1):
            if not isinstance(turn, Mapping) or self.speaker not in turn:
                raise RowError(f"turn {number} of {self.conversations} has no {self.speaker!r}")
            name = turn[self.speaker]
            role = known.get(str(name))
            if role is None:
                raise RowError(f"turn {number}: unknown speaker {name!r}; known are {', '.join(known)}")
            if role == "tool":
                raise RowError(f"turn {number} ({name}) uses a tool, {TOOLS}")
            pairs.append((role, text_of(turn.get(self.value), f"{self.value} of turn {number}")))
        return Example(messages=chat(pairs))
