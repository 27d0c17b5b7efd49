"""KTO: a prompt, one answer, and whether the answer is good (`label`, true or false), as for KTO.

Prompt and completion are texts, turns or lists of turns; or `messages` holds the whole dialogue. No task
learns from the judgments yet; `learn: good` trains on the good answers as on any dialogue and leaves
the rows with bad ones out, counted.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from luthier.data.formats.base import Format, column, dialogue_of, system_of, tools_of, turns_of, turns_or_text
from luthier.rendering.example import Example, RowError


class Kto(Format):
    """Rows with a prompt, a completion, and a label that is true or false."""

    order: ClassVar[int] = 5

    prompt: str = "prompt"
    """Column of the prompt."""
    input: str = "input"
    """Column of the material that the prompt is about; may be missing or empty."""
    system: str = "system"
    """Column of the system message; may be missing or empty."""
    completion: str = "completion"
    """Column of the answer."""
    messages: str = "messages"
    """Column of the whole dialogue, where there is no prompt."""
    tools: str = "tools"
    """Column of the tools on offer, a list or its JSON; may be missing or empty."""
    label: str = "label"
    """Column with the judgment: is the last answer good?"""
    learn: Literal["judged", "good"] = "judged"
    """What to learn: good and bad answers, which no task does yet, or the good answers alone."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        dialogue = (self.prompt in row and self.completion in row) or isinstance(row.get(self.messages), list)
        return dialogue and isinstance(row.get(self.label), bool)

    def unlearned(self) -> tuple[str, str]:
        fix = f"data.format.name={self.name} data.format.learn=good trains on the good answers alone"
        return ("answers that are judged good or bad", fix) if self.learn == "judged" else ("", "")

    def read(self, row: Mapping[str, Any]) -> Example:
        value = column(row, self.label, key="label")
        word = value.strip().lower() if isinstance(value, str) else value
        good = word in ("true", "1", 1)
        if not good and word not in ("false", "0", 0):
            raise RowError(f"{self.label} should be true or false, not {value!r:.40}")
        turns = system_of(row, self.system)
        if self.prompt not in row and self.messages in row:
            turns += turns_of(row[self.messages], self.messages)
        else:
            turns += turns_or_text(row, self.prompt, "user", key="prompt", material=self.input)
            turns += turns_or_text(row, self.completion, "assistant", key="completion")
        tools = tools_of(row, self.tools)
        dialogue = dialogue_of(turns, tools)
        if self.learn == "good" and not good:
            raise RowError("the answer is judged bad, and data.format.learn=good leaves such rows out", kind="unwanted")
        # The judgment is of the last answer; earlier ones are part of the question.
        asked = tuple(replace(message, learn=False) for message in dialogue[:-1])
        label = None if self.learn == "good" else str(good).lower()
        return Example(messages=(*asked, dialogue[-1]), label=label, tools=tools)
