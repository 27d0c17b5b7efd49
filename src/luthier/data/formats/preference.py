"""Preference: a prompt with a better (`chosen`) and a worse (`rejected`) answer, as for DPO.

Prompt and answers are texts, turns, or lists of turns. Answers may also be whole dialogues, which begin
alike; then the prompt column is not needed, and not read. No task learns from the pairs yet;
`learn: chosen` trains on the better answers as on any dialogue and leaves the worse ones out.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from luthier.data.formats.base import Format, dialogue_of, system_of, tools_of, turns_or_text
from luthier.rendering.example import Example, Message, RowError, shared_start


class Preference(Format):
    """Rows with a prompt, a chosen and a rejected answer."""

    order: ClassVar[int] = 6

    prompt: str = "prompt"
    """Column of the prompt; `conversations`, `messages`, `instruction` and `question` are found too."""
    input: str = "input"
    """Column of the material that the prompt is about; may be missing or empty."""
    system: str = "system"
    """Column of the system message; may be missing or empty."""
    chosen: str = "chosen"
    """Column of the better answer."""
    rejected: str = "rejected"
    """Column of the worse answer."""
    tools: str = "tools"
    """Column of the tools on offer, a list or its JSON; may be missing or empty."""
    learn: Literal["pairs", "chosen"] = "pairs"
    """What to learn: pairs, which no task does yet, or the chosen answers alone."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        return self.chosen in row and self.rejected in row

    def unlearned(self) -> tuple[str, str]:
        fix = f"data.format.name={self.name} data.format.learn=chosen trains on the better answers alone"
        return ("pairs of a better and a worse answer", fix) if self.learn == "pairs" else ("", "")

    def read(self, row: Mapping[str, Any]) -> Example:
        start = self._start(row)
        tools = tools_of(row, self.tools)
        chosen, rejected = (
            dialogue_of(start + turns_or_text(row, name, "assistant", key=key), tools)
            for key, name in (("chosen", self.chosen), ("rejected", self.rejected))
        )
        shared = shared_start(chosen, rejected)
        if shared == len(chosen) == len(rejected):
            raise RowError(f"{self.chosen} and {self.rejected} are the same")
        if any(len(side) == shared or side[shared].role != "assistant" for side in (chosen, rejected)):
            raise RowError(f"{self.chosen} and {self.rejected} should begin to differ in an answer")
        # Earlier answers are part of the question: both sides have them.
        chosen, rejected = (
            tuple(replace(message, learn=message.learn and i >= shared) for i, message in enumerate(side))
            for side in (chosen, rejected)
        )
        return Example(messages=chosen, rejected=rejected if self.learn == "pairs" else (), tools=tools)

    def _start(self, row: Mapping[str, Any]) -> list[Message]:
        name = self.prompt
        if name not in row and name == "prompt":
            others = ("conversations", "messages", "instruction", "question")
            name = next((other for other in others if other in row), name)
        start = system_of(row, self.system)
        if isinstance(row.get(self.chosen), list):
            turns = turns_or_text(row, self.chosen, "assistant", key="chosen")
            if name not in row or (turns and turns[0].role != "assistant"):
                return start  # the answers are whole dialogues, which hold the prompt already
        return start + turns_or_text(row, name, "user", key="prompt", material=self.input)
