"""Chat: learn the assistant's answers. The loss is -log p over their tokens and the token that ends each of them."""

from collections.abc import Sequence
from dataclasses import replace

from luthier.core.errors import TemplateError
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example, Message, RowError
from luthier.rendering.row import IGNORED, LongRow, Row
from luthier.rendering.tools import shows
from luthier.tasks.base import Task


class Chat(Task):
    """Answer as the assistant does in the data."""

    def encode(self, example: Example, template: Template, max_length: int, on_long: LongRow) -> list[Row]:
        if not example.messages:
            raise RowError("the row has no dialogue", fix="task=complete learns plain text")
        try:
            # Mostly one row; one per answer where the template renders an answer differently when other turns follow.
            rows = template.rows(example.messages, example.tools)
            return [_fit(tokens, template, max_length, on_long, example) for tokens in rows]
        except TemplateError as error:  # so that the message names the row
            raise RowError(error.message, fix=error.fix) from error


def _fit(tokens: Row, template: Template, max_length: int, on_long: LongRow, example: Example) -> Row:
    """The row, cut to `max_length` tokens by the policy."""
    full = len(tokens.ids)
    if full > max_length:
        if on_long == "truncate_answer":
            tokens = Row(tokens.ids[:max_length], tokens.labels[:max_length])
        elif on_long == "truncate_prompt":
            tokens = _shorten_prompt(tokens.messages, example.tools, template, max_length)
        else:
            raise RowError(f"{full} tokens, but train.max_length is {max_length}", kind="long")
    if all(label == IGNORED for label in tokens.labels):
        raise RowError(f"the whole answer is cut away: {full} tokens, train.max_length {max_length}", kind="long")
    return Row(tokens.ids, tokens.labels, example.where, cut=full - len(tokens.ids))


def _shorten_prompt(messages: Sequence[Message], tools: str, template: Template, max_length: int) -> Row:
    """Cut the end of the longest message that is not learned until the dialogue fits; answers and tools stay whole."""
    cut = list(messages)
    for _ in range(8):  # cutting text and tokenizing it again can differ by a few tokens, so try again
        tokens = template.encode(cut, tools)
        over = len(tokens.ids) - max_length
        if over <= 0:
            return tokens
        text = template.render(cut, tools=tools)  # what the template leaves out (earlier thoughts) takes no room
        places = [i for i, m in enumerate(cut) if not m.learn and shows(text, m.content)]
        place = max(places, key=lambda i: len(cut[i].content), default=None)
        ids = template.encode_text(cut[place].content) if place is not None else []
        if place is None or len(ids) <= over:
            break
        shorter = template.tokenizer.decode(ids[: len(ids) - over], skip_special_tokens=True)
        cut[place] = replace(cut[place], content=str(shorter))
    raise RowError(f"even without its prompt the row is longer than train.max_length {max_length}", kind="long")
