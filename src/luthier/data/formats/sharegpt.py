"""ShareGPT: a `conversations` list of turns with `from` (human, gpt, system) and `value`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.data.example import Example, RowError, chat
from luthier.data.formats.base import Format, column, optional_text, text_of

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class ShareGPT(Format):
    """Rows with a `conversations` list; every gpt turn is learned."""

    order: ClassVar[int] = 20

    conversations: str = "conversations"
    """Column that holds the list of turns."""
    system: str = "system"
    """Column of the system message; may be missing or empty."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        turns = row.get(self.conversations)
        return isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and "from" in turns[0]

    def read(self, row: Mapping[str, Any]) -> Example:
        turns = column(row, self.conversations, key="conversations")
        if not isinstance(turns, list):
            raise RowError(f"{self.conversations} should be a list of turns, not {type(turns).__name__}")
        system = optional_text(row, self.system)
        pairs = [("system", system)] if system else []
        for number, turn in enumerate(turns, 1):
            if not isinstance(turn, Mapping) or "from" not in turn:
                raise RowError(f"turn {number} of {self.conversations} has no 'from'")
            role = ROLES.get(str(turn["from"]))
            if role is None:
                raise RowError(f"turn {number}: unknown speaker {turn['from']!r}; known are {', '.join(ROLES)}")
            pairs.append((role, text_of(turn.get("value"), f"value of turn {number}")))
        return Example(messages=chat(pairs))
