"""Complete: learn plain text, as in pretraining.

Every token is a target, the end token included, so the model learns where a text ends. Texts longer
than the limit are split into windows and nothing is lost. Rows with a prompt and a completion are
joined as they stand, without a chat template, and only the completion is learned.
"""

from typing import ClassVar

from luthier.rendering.chat_template import IGNORED, Template
from luthier.rendering.example import Example, RowError
from luthier.rendering.row import LongRow, Row
from luthier.tasks.base import Task


class Complete(Task):
    """Continue text: pretraining from scratch or continued pretraining."""

    splits_long_rows: ClassVar[bool] = True

    def encode(self, example: Example, template: Template, max_length: int, on_long: LongRow) -> list[Row]:
        if example.tools or any(message.tool_calls for message in example.messages):
            raise RowError("the row has tools, which plain text cannot show", fix="task=chat learns such rows")
        tokenizer = template.tokenizer
        pieces = [(message.content, message.learn) for message in example.messages] or [(example.text, True)]
        if not any(content.strip() for content, learn in pieces if learn):
            raise RowError("the text is empty")
        ids: list[int] = list(tokenizer("")["input_ids"])  # what the tokenizer opens every text with, bos if any
        if ids and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
        labels = [IGNORED] * len(ids)
        for content, learn in pieces:
            new = template.encode_text(content)
            ids += new
            labels += new if learn else [IGNORED] * len(new)
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
            labels.append(tokenizer.eos_token_id)
        if len(ids) <= max_length:
            return [Row(ids, labels, example.where)]
        if on_long == "split":
            return _windows(ids, labels, example.where, max_length)
        if on_long == "truncate_answer":
            return [Row(ids[:max_length], labels[:max_length], example.where, cut=len(ids) - max_length)]
        if on_long == "truncate_prompt":
            return [Row(ids[-max_length:], labels[-max_length:], example.where, cut=len(ids) - max_length)]
        raise RowError(f"{len(ids)} tokens, but train.max_length is {max_length}", kind="long")


def _windows(ids: list[int], labels: list[int], where: str, size: int) -> list[Row]:
    """Windows that overlap by one token: the first token of each is not a target, so every token is one once."""
    parts = [slice(start, start + size) for start in range(0, len(ids) - 1, size - 1)]
    return [Row(ids[p], labels[p], where) for p in parts if any(label != IGNORED for label in labels[p][1:])]
