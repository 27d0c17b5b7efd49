"""The central record: an example, into which every format turns its rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.core.errors import LuthierError


class RowError(LuthierError):
    """One row cannot be used: it is `bad` or `long` (see data.on_bad_row, data.on_long_row), or `unwanted`."""

    def __init__(self, reason: str, *, kind: str = "bad", fix: str = "") -> None:
        super().__init__(reason)
        self.reason, self.kind, self.fix = reason, kind, fix


FIXES = {
    "long": "raise train.max_length, or data.on_long_row=truncate_prompt (keeps the answer), skip or truncate_answer",
    "bad": "fix the row, or leave such rows out with data.on_bad_row=skip",
}
"""Kind of a RowError -> its fix, where the error has none of its own."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `learn`: do its tokens carry loss? A `tool` turn is the result of a tool."""

    role: str
    content: str
    learn: bool = False
    tool_calls: str = ""
    """The calls of an assistant's turn, as JSON in OpenAI's form, arguments as an object (see rendering.tools)."""
    name: str = ""
    """The tool of this result."""
    tool_call_id: str = ""
    """The call of this result, where the data names its calls."""

    @property
    def all_text(self) -> str:
        """The text of the turn and its calls as they are kept."""
        return "\n".join(filter(None, (self.content, self.tool_calls)))


@dataclass(frozen=True, slots=True)
class Example:
    """One row of any format. A format fills what its rows have; a task takes what it needs."""

    messages: tuple[Message, ...] = ()
    text: str = ""
    pair: str = ""
    """Second text of a sentence pair (entailment, paraphrase)."""
    label: str | None = None
    """The class of the text; of a judged answer `true` or `false`."""
    rejected: tuple[Message, ...] = ()
    """The dialogue of `messages` with a worse answer, in a preference pair."""
    tools: str = ""
    """The tools on offer, as a JSON list in OpenAI's form (see rendering.tools)."""
    where: str = ""
    """File and line of the row, for messages."""
    group: str = ""
    """Rows of one group stay on one side of a split (see data.group)."""

    @property
    def answer(self) -> str:
        """What a tuned model should generate: the last learned message, or the label."""
        learned = [message.all_text for message in self.messages if message.learn]
        return learned[-1] if learned else (self.label or "")


ROLES = ("system", "user", "assistant", "tool")


def chat(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns as a dialogue that learns every assistant turn; RowError where they are not a dialogue.

    Each call has its result before the next turn of a user or assistant, except calls that end the dialogue: those
    are the answer. A result without an id or a name gets them from its call.
    """
    if not turns:
        raise RowError("the dialogue has no turn")
    made: list[Message] = []
    last = ""
    calls: list[Any] = []  # calls without a result yet
    for number, turn in enumerate(turns, 1):
        role = turn.role
        if role not in ROLES:
            raise RowError(f"turn {number}: unknown role {role!r}; known are {', '.join(ROLES)}")
        if role == "system" and number > 1:
            raise RowError(f"turn {number}: a system message must come first")
        if turn.tool_calls and role != "assistant":
            raise RowError(f"turn {number}: the {role} calls a tool, which only the assistant does")
        if role == "tool":  # whose text may be empty
            made.append(_result(turn, number, calls, last))
            last = role
            continue
        if calls:
            raise RowError(f"turn {number}: the call of {calls[0]['function']['name']!r} before it has no result")
        if role == last:
            raise RowError(f"turn {number}: two {role} turns in a row")
        if role == "assistant" and last in ("", "system"):
            raise RowError(f"turn {number}: the assistant speaks before the user")
        if not turn.all_text.strip():
            raise RowError(f"turn {number}: the {role} message is empty")
        calls = json.loads(turn.tool_calls or "[]")
        last = "call" if turn.tool_calls else role
        made.append(replace(turn, learn=role == "assistant"))
    if last not in ("assistant", "call"):
        raise RowError(f"the dialogue ends with a {last} turn, so there is no answer to learn")
    return tuple(made)


def shared_start(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The number of equal items at the start of both."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _result(turn: Message, number: int, calls: list[Any], last: str) -> Message:
    """A tool's result with the id and the name of its call, which leaves `calls`."""
    if not calls:
        fault = "more tool results than calls" if last == "tool" else "a tool result without a call before it"
        raise RowError(f"turn {number}: {fault}")
    names = [str(call["function"]["name"]) for call in calls]
    place = 0
    if turn.tool_call_id:
        ids = [str(call.get("id", "")) for call in calls]
        if turn.tool_call_id not in ids:
            there = ", ".join(map(repr, filter(None, ids))) or "none"
            raise RowError(f"turn {number}: the tool result is of call {turn.tool_call_id!r}; open calls are {there}")
        place = ids.index(turn.tool_call_id)
    elif turn.name:
        if turn.name not in names:
            raise RowError(f"turn {number}: the tool result is of {turn.name!r}; open calls are of {', '.join(names)}")
        place = names.index(turn.name)
    call = calls.pop(place)
    return replace(turn, name=turn.name or names[place], tool_call_id=turn.tool_call_id or call.get("id", ""))


def sound(text: str, name: str) -> str:
    """The text, where a tokenizer can take it: some stop at a NUL, and none can encode half a character."""
    if "\0" in text:
        raise RowError(f"{name} holds a NUL character, as damaged files and binary data do")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError(f"{name} holds half a character (a lone surrogate such as \\ud800)") from None
    return text
