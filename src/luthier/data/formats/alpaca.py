"""Alpaca: `instruction`, an optional `input`, and the `output` to learn.

Stanford Alpaca's layout, with LLaMA-Factory's optional `system` and `history` (pairs of earlier turns).
The input follows the instruction after a line break; Alpaca's own English preamble is left out, since
the chat template already marks the speakers.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.data.formats.base import Format, column, optional_text, system_of, text_of, tools_of
from luthier.rendering.example import Example, Message, RowError, chat


class Alpaca(Format):
    """Rows with instruction, input and output."""

    order: ClassVar[int] = 30

    instruction: str = "instruction"
    """Column of the instruction or question."""
    input: str = "input"
    """Column of the material that the instruction is about; may be missing or empty."""
    output: str = "output"
    """Column of the answer to learn."""
    system: str = "system"
    """Column of the system message; may be missing or empty."""
    history: str = "history"
    """Column of earlier [question, answer] pairs; may be missing or empty."""
    tools: str = "tools"
    """Column of the tools on offer, a list or its JSON; may be missing or empty."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        return self.instruction in row and self.output in row

    def read(self, row: Mapping[str, Any]) -> Example:
        question = text_of(column(row, self.instruction, key="instruction"), self.instruction)
        material = optional_text(row, self.input)
        answer = text_of(column(row, self.output, key="output"), self.output)
        turns = system_of(row, self.system)
        history = row.get(self.history) or []
        if not isinstance(history, list | tuple):
            raise RowError(f"{self.history} should be a list, not {type(history).__name__}")
        for pair in history:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise RowError(f"{self.history} should be pairs of question and answer")
            for role, text in zip(("user", "assistant"), pair, strict=True):
                turns.append(Message(role, text_of(text, self.history)))
        turns.append(Message("user", f"{question}\n{material}" if material else question))
        return Example(messages=chat([*turns, Message("assistant", answer)]), tools=tools_of(row, self.tools))
