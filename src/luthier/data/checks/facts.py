"""Hashes of the texts that an audit compares: computed in parallel processes, and small in memory."""

from array import array
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

from luthier.core.events import Progress
from luthier.data.checks.duplicates import normalized
from luthier.data.checks.languages import script
from luthier.data.encode import pieces
from luthier.data.parallel import in_order
from luthier.data.store import Examples, example_of
from luthier.rendering.example import Example

PREFIX = 40
"""Characters that prompts must share to count as one template."""
SHORT = 2
"""An answer of at most this many characters is short."""


class TextHashes:
    """Hashes of these texts of each example, in order, 0 where there is none: equal texts, equal hashes.

    They have 64 bits: among a million different texts, two share a hash with a probability of 3e-8.
    """

    def __init__(self) -> None:
        self.contents, self.prompts, self.answers, self.heads = array("Q"), array("Q"), array("Q"), array("Q")
        """The example's own text and the input of the model, normalized; the answer of a dialogue; the first PREFIX
        characters of a longer prompt or text."""
        self.scripts: Counter[str] = Counter()
        self.short = array("Q")
        """Numbers of the dialogues with a short answer."""
        self.chats = 0


def text_hashes(sides: Sequence[Examples], workers: int, progress: Progress) -> TextHashes:
    """The hashes of all examples of these sides, one side after another."""
    found, every = TextHashes(), sum(map(len, sides))
    hashes = found.contents, found.prompts, found.answers, found.heads
    for side in sides:
        for part in in_order(hashes_of, pieces(side), workers):
            for own, name, length in part:
                if length is not None:
                    found.chats += 1
                    if length <= SHORT:
                        found.short.append(len(found.contents))
                found.scripts[name] += 1
                for numbers, number in zip(hashes, own, strict=True):
                    numbers.append(number)
            progress.rows(len(found.contents), every)
    return found


def hashes_of(records: Sequence[bytes]) -> list[tuple[tuple[int, ...], str, int | None]]:
    """The hashes of each example, its script, and the characters of the answer of an unlabeled dialogue."""
    made = []
    for record in records:
        example = example_of(record)
        own, begin = content(example), beginning(example)
        answer = example.answer.strip() if example.messages else ""
        texts = normalized(own + example.tools), normalized(prompt(example) + example.tools), answer
        hashes = (*map(_hash, texts), _hash(begin[:PREFIX]) if len(begin) > PREFIX else 0)
        made.append((hashes, script(own), len(answer) if example.messages and example.label is None else None))
    return made


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
