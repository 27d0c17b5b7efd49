"""Complete: learn plain text, as in pretraining.

Every token is a target, the end token included. Longer texts are split into windows. Rows with a prompt and a
completion are joined as they stand, without a chat template, and only the completion is learned.
"""

from typing import ClassVar

from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example, RowError
from luthier.rendering.row import IGNORED, LongRow, Row
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
        where, cut = example.where, len(ids) - max_length
        if cut <= 0:
            return [Row(ids, labels, where)]
        if on_long == "split":  # windows overlap by one token: the first of each is not a target, so every one is once
            parts = [slice(start, start + max_length) for start in range(0, len(ids) - 1, max_length - 1)]
            return [Row(ids[p], labels[p], where) for p in parts if any(label != IGNORED for label in labels[p][1:])]
        if on_long not in ("truncate_prompt", "truncate_answer"):
            raise RowError(f"{len(ids)} tokens, but train.max_length is {max_length}", kind="long")
        kept = slice(max_length) if on_long == "truncate_answer" else slice(-max_length, None)
        return [Row(ids[kept], labels[kept], where, cut=cut)]
