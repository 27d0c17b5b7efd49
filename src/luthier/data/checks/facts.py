"""What an audit compares of each example, as numbers: found in processes side by side, and small in memory."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from luthier.core.events import Progress
from luthier.data.checks.duplicates import normalised
from luthier.data.checks.scripts import script
from luthier.data.encode import pieces
from luthier.data.parallel import in_order
from luthier.data.store import Examples, example_of
from luthier.rendering.example import Example

PREFIX = 40
"""Characters that prompts must share to count as one template."""
SHORT = 2
"""An answer of at most this many characters is short."""


def _numbers() -> array[int]:
    return array("Q")


@dataclass(slots=True)
class Facts:
    """Of each example in order a hash of these texts, 0 where there is none: equal texts, equal hashes.

    They have 64 bits: among a million different texts, two share a hash with a chance of 3e-8.
    """

    contents: array[int] = field(default_factory=_numbers)
    """Of the example's own text, normalised."""
    prompts: array[int] = field(default_factory=_numbers)
    """Of what the model is given, normalised."""
    answers: array[int] = field(default_factory=_numbers)
    """Of the answer of a dialogue."""
    heads: array[int] = field(default_factory=_numbers)
    """Of the first PREFIX characters of a longer prompt or text."""
    scripts: Counter[str] = field(default_factory=Counter)
    short: array[int] = field(default_factory=_numbers)
    """Numbers of the dialogues with a short answer."""
    chats: int = 0

    def add(self, other: Facts) -> None:
        """Those of the examples that follow."""
        self.short.extend(number + len(self.contents) for number in other.short)
        for name in ("contents", "prompts", "answers", "heads"):
            getattr(self, name).extend(getattr(other, name))
        self.scripts.update(other.scripts)
        self.chats += other.chats


def facts(sides: Iterable[Examples], workers: int, progress: Progress) -> Facts:
    """The facts of all examples of these sides, one side behind another."""
    sides = list(sides)
    found, every = Facts(), sum(map(len, sides))
    for side in sides:
        for part in in_order(facts_of, pieces(side), workers):
            found.add(part)
            progress.rows(len(found.contents), every)
    return found


def facts_of(records: Sequence[bytes]) -> Facts:
    """Those of some examples."""
    found = Facts()
    for number, record in enumerate(records):
        example = example_of(record)
        own, asked = content(example), prompt(example)
        found.contents.append(_hash(normalised(own + example.tools)))
        found.prompts.append(_hash(normalised(asked + example.tools)))
        found.answers.append(_hash(example.answer.strip()) if example.messages else 0)
        found.heads.append(head(example))
        found.scripts[script(own)] += 1
        if example.messages and example.label is None:
            found.chats += 1
            if len(example.answer.strip()) <= SHORT:
                found.short.append(number)
    return found


def prompt(example: Example) -> str:
    """What the model is given: the text to classify, or the user's turns; plain text has none."""
    if example.text:  # a labelled text may stand in a dialogue as well, in words of ours
        return content(example) if example.label is not None else ""
    return "\n".join(message.content for message in example.messages if message.role == "user")


def content(example: Example) -> str:
    """The row's own text, without its label."""
    if example.text:
        return "\n".join(filter(None, (example.text, example.pair)))
    return "\n".join(message.said for message in (*example.messages, *example.rejected[-1:]))


def beginning(example: Example) -> str:
    """The text whose first characters may be those of a template."""
    return prompt(example).strip() or example.text.strip()


def head(example: Example) -> int:
    """Hash of the first characters of a longer prompt or text."""
    text = beginning(example)
    return _hash(text[:PREFIX]) if len(text) > PREFIX else 0


def _hash(text: str) -> int:
    if not text:
        return 0
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) or 1
