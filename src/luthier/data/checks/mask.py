"""The loss mask as text: which tokens of a row are learned; and checks of the masks."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.core.errors import DataError
from luthier.data.prepared import Prepared
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example
from luthier.rendering.row import IGNORED, Row

Kind = Literal["plain", "special", "learned", "end", "gap"]
MOST_TOKENS = 400
"""Tokens of a row that are shown: the first and the last half of them."""
LINE = 400
"""Characters of a row on one line."""
MOST_CHECKED = 5_000
"""Examples whose prompts are rendered again to check that no token of them is learned; of more, evenly spaced ones."""
BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(slots=True)
class Mask:
    """One row as pieces of text, each with its kind; a piece is a token, or several that make up one character."""

    where: str
    why: str
    """Why this row is shown."""
    tokens: int
    learned: int
    label: str
    """For a classifier, the class that is learned instead of tokens."""
    pieces: list[tuple[str, Kind]]


def masks(data: Prepared, template: Template) -> list[Mask]:
    """The first few training rows, and the longest."""
    if not data.rows:
        return []
    longest = max(range(len(data.rows)), key=data.rows.lengths.__getitem__)
    chosen = dict.fromkeys(range(min(3, len(data.rows))), "one of the first training rows")
    chosen[longest] = "the longest training row"
    return [mask(data.rows[number], why, data, template) for number, why in chosen.items()]


def mask(row: Row, why: str, data: Prepared, template: Template) -> Mask:
    """What of a row is learned, as text."""
    classes = data.task.model_class == "classification"
    labels = [IGNORED] * len(row.ids) if classes else [IGNORED, *row.labels[1:]]  # the first token is not a target
    ends = template.end_ids if data.task.name == "chat" else {template.tokenizer.eos_token_id}
    special = set(template.special)
    kinds: list[Kind] = []
    for token, label in zip(row.ids, labels, strict=True):
        learned: Kind = "end" if token in ends else "learned"
        kinds.append(learned if label != IGNORED else "special" if token in special else "plain")
    if len(row.ids) <= MOST_TOKENS:
        pieces = list(_pieces(row.ids, kinds, special, template))
    else:  # cut near the half of what is shown on each side, and not inside a character
        first, last = MOST_TOKENS // 2, len(row.ids) - MOST_TOKENS // 2
        heads, tails = range(first, first - 4, -1), range(last, last + 4)
        first = next((at for at in heads if not _text(row.ids[at - 4 : at], template).endswith(BROKEN)), first)
        last = next((at for at in tails if not _text(row.ids[at : at + 4], template).startswith(BROKEN)), last)
        learned_inside = sum(kind in ("learned", "end") for kind in kinds[first:last])
        gap: tuple[str, Kind] = (f" ... {last - first:,} tokens, {learned_inside:,} of them learned ... ", "gap")
        head = _pieces(row.ids[:first], kinds[:first], special, template)
        pieces = [*head, gap, *_pieces(row.ids[last:], kinds[last:], special, template)]
    learned_tokens, label_text = (0, data.task.label_of(row)) if classes else (row.learned, "")
    return Mask(row.where, why, len(row.ids), learned_tokens, label_text, pieces)


def seen(data: Prepared, template: Template) -> str:
    """The first training row on one line, with what is learned of it between \u00ab and \u00bb."""
    shown = mask(data.rows[0], "", data, template)
    text, inside = "", False
    for piece, kind in shown.pieces:
        learned = kind in ("learned", "end")
        text += ("\u00ab" if learned else "\u00bb") * (learned != inside) + piece
        inside = learned
    text = " ".join((text + "\u00bb" * inside).split("\n"))
    if len(text) > LINE:
        text = f"{text[: LINE // 2]} ... {text[-LINE // 2 :]}"
    return f"{text} -> \u00ab{shown.label}\u00bb" if shown.label else text


def _pieces(
    ids: Sequence[int], kinds: Sequence[Kind], special: set[int], template: Template
) -> Iterator[tuple[str, Kind]]:
    """Text of each token in its context: a single token may lose its space, or be a part of a character."""
    before: Sequence[int] = []
    begin = 0
    while begin < len(ids):
        end = begin + 1
        if ids[begin] in special:
            yield str(template.tokenizer.convert_ids_to_tokens(ids[begin])), kinds[begin]
            before, begin = [], end
            continue
        while (text := _after(before, ids[begin:end], template)).endswith(BROKEN) and end - begin < 8:
            if end == len(ids) or ids[end] in special or kinds[end] != kinds[begin]:
                break
            end += 1
        yield text, kinds[begin]
        before, begin = ids[begin:end], end


def _after(before: Sequence[int], ids: Sequence[int], template: Template) -> str:
    context, both = _text(before, template), _text([*before, *ids], template)
    return both[len(context) :] if both.startswith(context) else _text(ids, template)


def _text(ids: Sequence[int], template: Template) -> str:
    return str(template.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def refuse_endless(data: Prepared, template: Template) -> None:
    """DataError where no row at all teaches the model to stop."""
    if data.task.name != "chat" or not data.rows:
        return
    # One row that has it is enough, and mostly the first: train checks this at every start.
    if next(data.rows.containing(template.end_ids, learned=True), None) is None:
        why = "the token that ends an answer is cut away here and in all others, so the model would never learn to stop"
        fix = "raise train.max_length, or data.on_long_row=truncate_prompt, which keeps the answers whole"
        raise DataError(f"{data.rows.where(0)}: {why}", fix=fix)


def learned_prompts(data: Prepared, template: Template) -> tuple[list[str], int]:
    """Places of the rows of a chat that learn tokens of a prompt, rendered again by itself, and the rows checked."""
    if data.task.name != "chat":
        return [], 0
    examples, owner = data.examples, data.rows.owner
    numbers: Sequence[int] = range(len(examples))
    if len(examples) > MOST_CHECKED:
        numbers = [number * len(examples) // MOST_CHECKED for number in range(MOST_CHECKED)]
    checked = ((examples[n], data.rows[bisect_left(owner, n) : bisect_right(owner, n)]) for n in numbers)
    return [example.where for example, rows in checked if not _prompt_masked(example, rows, template)], len(numbers)


def _prompt_masked(example: Example, rows: Sequence[Row], template: Template) -> bool:
    """Do these rows learn nothing but the answers of the example?"""
    turns = [turn for turn, message in enumerate(example.messages) if message.learn]
    for number, row in enumerate(rows):
        learned = [label != IGNORED for label in row.labels]
        starts = [i for i, now in enumerate(learned) if now and not (i and learned[i - 1])]
        if row.cut or not turns or not starts:  # a shortened prompt is another one
            continue
        turn = turns[number % len(turns)] if len(rows) > 1 == len(starts) else turns[0]
        if len(starts) > len(turns) or starts[0] < len(template.prompt_ids(example.messages[:turn], example.tools)):
            return False
    return True
