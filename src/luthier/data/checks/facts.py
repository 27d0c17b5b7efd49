"""Hashes of the texts that an audit compares: computed in parallel processes, and small in memory."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b

from luthier.core.events import Progress
from luthier.data.checks.duplicates import normalized
from luthier.data.checks.scripts import script
from luthier.data.encode import pieces
from luthier.data.parallel import in_order
from luthier.data.store import Examples, example_of
from luthier.rendering.example import Example

PREFIX = 40
"""Characters that prompts must share to count as one template."""
SHORT = 2
"""An answer of at most this many characters is short."""


@dataclass(slots=True)
class TextHashes:
    """Hashes of these texts of each example, in order, 0 where there is none: equal texts, equal hashes.

    They have 64 bits: among a million different texts, two share a hash with a probability of 3e-8.
    """

    contents: "array[int]" = field(default_factory=partial(array, "Q"))
    """The example's own text, normalized."""
    prompts: "array[int]" = field(default_factory=partial(array, "Q"))
    """The input of the model, normalized."""
    answers: "array[int]" = field(default_factory=partial(array, "Q"))
    """The answer of a dialogue."""
    heads: "array[int]" = field(default_factory=partial(array, "Q"))
    """The first PREFIX characters of a longer prompt or text."""
    scripts: Counter[str] = field(default_factory=Counter)
    short: "array[int]" = field(default_factory=partial(array, "Q"))
    """Numbers of the dialogues with a short answer."""
    chats: int = 0

    def add(self, other: "TextHashes") -> None:
        """Append the hashes of the examples that follow."""
        self.short.extend(number + len(self.contents) for number in other.short)
        for name in ("contents", "prompts", "answers", "heads"):
            getattr(self, name).extend(getattr(other, name))
        self.scripts.update(other.scripts)
        self.chats += other.chats


def text_hashes(sides: Sequence[Examples], workers: int, progress: Progress) -> TextHashes:
    """The hashes of all examples of these sides, one side after another."""
    found, every = TextHashes(), sum(map(len, sides))
    for side in sides:
        for part in in_order(hashes_of, pieces(side), workers):
            found.add(part)
            progress.rows(len(found.contents), every)
    return found


def hashes_of(records: Sequence[bytes]) -> TextHashes:
    """The hashes of some examples."""
    found = TextHashes()
    for number, record in enumerate(records):
        example = example_of(record)
        own, asked = content(example), prompt(example)
        found.contents.append(_hash(normalized(own + example.tools)))
        found.prompts.append(_hash(normalized(asked + example.tools)))
        found.answers.append(_hash(example.answer.strip()) if example.messages else 0)
        begin = beginning(example)
        found.heads.append(_hash(begin[:PREFIX]) if len(begin) > PREFIX else 0)
        found.scripts[script(own)] += 1
        if example.messages and example.label is None:
            found.chats += 1
            if len(example.answer.strip()) <= SHORT:
                found.short.append(number)
    return found


def prompt(example: Example) -> str:
    """The input of the model: the text to classify, or the user's turns; plain text has none."""
    if example.text:  # a labeled text may be in a dialogue as well, with our prompt
        return content(example) if example.label is not None else ""
    return "\n".join(message.content for message in example.messages if message.role == "user")


def content(example: Example) -> str:
    """The row's own text, without its label."""
    if example.text:
        return "\n".join(filter(None, (example.text, example.pair)))
    return "\n".join(message.all_text for message in (*example.messages, *example.rejected[-1:]))


def beginning(example: Example) -> str:
    """The text whose first characters may be those of a template."""
    return prompt(example).strip() or example.text.strip()


def _hash(text: str) -> int:
    if not text:
        return 0
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) or 1
