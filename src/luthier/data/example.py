"""The central record: what one row of any format becomes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from luthier.errors import LuthierError


class RowError(LuthierError):
    """One row cannot be used.

    `kind` is `bad` (see data.on_bad_row), `long` (see data.on_long_row), or `unwanted`: the recipe wants it left out.
    """

    def __init__(self, reason: str, *, kind: str = "bad", mend: str = "") -> None:
        self.reason, self.kind, self.mend = reason, kind, mend
        super().__init__(reason)


MENDS = {
    "long": "raise train.max_length, or data.on_long_row=truncate_prompt (keeps the answer), skip or truncate_answer",
    "bad": "mend the row, or leave such rows out with data.on_bad_row=skip",
}
"""Kind of a RowError -> what to do about it, where it does not say so itself."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `learn`: do its tokens carry loss?"""

    role: str
    content: str
    learn: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """One row, in our terms. A format fills what its rows have; a task takes what it needs."""

    messages: tuple[Message, ...] = ()
    text: str = ""
    pair: str = ""
    """Second text of a sentence pair (entailment, paraphrase)."""
    label: str | None = None
    """The class of the text; of a judged answer `true` or `false`."""
    rejected: tuple[Message, ...] = ()
    """The dialogue of `messages` with a worse answer, in a preference pair."""
    where: str = ""
    """File and line of the row, for messages to people."""
    group: str = ""
    """Rows of one group stay on one side of a split (see data.group)."""

    @property
    def content(self) -> Example:
        """The example without where it stands: what two rows share that are the same."""
        return replace(self, where="", group="")

    @property
    def answer(self) -> str:
        """What a tuned model should say: the last learned message, or the label."""
        learned = [message.content for message in self.messages if message.learn]
        return learned[-1] if learned else (self.label or "")


def chat(turns: list[tuple[str, str]]) -> tuple[Message, ...]:
    """Messages from (role, content) pairs, learning every assistant turn; RowError where they make no dialogue."""
    if not turns:
        raise RowError("the dialogue has no turn")
    last = ""
    for number, (role, content) in enumerate(turns, 1):
        if role not in ("system", "user", "assistant"):
            raise RowError(f"turn {number}: unknown role {role!r}; known are system, user, assistant")
        if role == "system" and number > 1:
            raise RowError(f"turn {number}: a system message must come first")
        if role == last:
            raise RowError(f"turn {number}: two {role} turns in a row")
        if role == "assistant" and last in ("", "system"):
            raise RowError(f"turn {number}: the assistant speaks before the user")
        if not content.strip():
            raise RowError(f"turn {number}: the {role} message is empty")
        last = role
    if last != "assistant":
        raise RowError(f"the dialogue ends with a {last} turn, so there is no answer to learn")
    return tuple(Message(role, content, learn=role == "assistant") for role, content in turns)
