"""Prompt and completion: two columns, of which the second is learned."""

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.data.formats.base import Format, column, text_of, tools_of
from luthier.rendering.example import Example, Message, chat


class PromptCompletion(Format):
    """Rows with a prompt and a completion."""

    order: ClassVar[int] = 40

    prompt: str = "prompt"
    """Column of what comes before."""
    completion: str = "completion"
    """Column of what to learn."""
    tools: str = "tools"
    """Column of the tools on offer, a list or its JSON; may be missing or empty."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        return self.prompt in row and self.completion in row

    def read(self, row: Mapping[str, Any]) -> Example:
        prompt = text_of(column(row, self.prompt, key="prompt"), self.prompt)
        completion = text_of(column(row, self.completion, key="completion"), self.completion)
        dialogue = chat([Message("user", prompt), Message("assistant", completion)])
        return Example(messages=dialogue, tools=tools_of(row, self.tools))
