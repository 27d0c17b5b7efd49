"""Equal texts by hashes, computed in parallel processes, and nearly equal ones by MinHash over shingles with bands.

MinHash: A. Broder, On the resemblance and containment of documents, 1997. Each text is the set of its
shingles (5 characters in a row); the share of equal minima over random hash functions estimates the Jaccard
similarity of two sets. Texts that agree in a whole band of minima are compared exactly, so what is reported
is never an estimate; what may be missed is a pair near the threshold (one in a thousand at 0.8).
"""

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.core.events import Progress
from luthier.data.checks.languages import script
from luthier.data.encode import pieces
from luthier.data.parallel import in_order
from luthier.data.store import Examples, example_of
from luthier.rendering.example import Example

THRESHOLD = 0.8
"""Share of common shingles (Jaccard) from which two texts count as nearly equal."""
SHINGLE = 5  # characters
BANDS, BAND = 20, 5  # a pair at 0.8 shares a band with p = 0.9996, at 0.5 with p = 0.47, at 0.3 with p = 0.05
MOST_TEXTS = 50_000
"""Texts that are compared; of more, evenly spaced ones beside the validation rows."""
MOST_CHARACTERS = 4_000
"""Characters of a text that are compared."""
MOST_PAIRS = 100_000
"""Pairs that are compared exactly."""
CROWD = 32  # in a fuller bucket each text is compared with the first one only
SPACE = re.compile(r"\s+")
PREFIX = 40
"""Characters that prompts must share to count as one template."""
SHORT = 2
"""An answer of at most this many characters is short."""


@dataclass(slots=True)
class Near:
    """Pairs (a, b, similarity) of numbers of texts, a < b, the most similar first; and how far the search went."""

    pairs: list[tuple[int, int, float]] = field(default_factory=list)
    texts: int = 0
    whole: bool = True
    """False where the bounds above left texts or pairs out."""


def normalized(text: str) -> str:
    """The text in Unicode's compatible form and lower case, with one space for any white space."""
    return SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def groups(keys: Sequence[int]) -> list[list[int]]:
    """Numbers of the texts whose keys are equal, two or more each, in order; a key of 0 equals no other."""
    every = np.asarray(keys, dtype=np.uint64)
    order = np.argsort(every, kind="stable")
    ordered = every[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ends = np.append(begins[1:], len(ordered))
    return sorted(order[a:b].tolist() for a, b in zip(begins, ends, strict=True) if b - a > 1 and ordered[a])


def near(text: Callable[[int], str], keys: Sequence[int], first: int = 0) -> Near:
    """Nearly equal texts, where `text(number)` is normalized. Of equal keys only the first is compared, of key 0 none.

    Where there are too many, those from number `first` on (the validation rows) are compared before others.
    """
    _, firsts = np.unique(np.asarray(keys, dtype=np.uint64), return_index=True)
    numbers = sorted(number for number in firsts.tolist() if keys[number])
    result = Near(whole=len(numbers) <= MOST_TEXTS)
    if not result.whole:
        chosen = [number for number in numbers if number >= first > 0][:MOST_TEXTS]
        others, room = [number for number in numbers if not number >= first > 0], MOST_TEXTS - len(chosen)
        numbers = sorted(chosen + [others[i * len(others) // room] for i in range(room)])
    result.texts = len(numbers)
    if len(numbers) < 2:
        return result
    random = np.random.default_rng(7)
    factors = random.integers(1, 2**63, BANDS * BAND, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    terms = random.integers(0, 2**63, BANDS * BAND, dtype=np.uint64)
    minima = np.empty((len(numbers), BANDS * BAND), dtype=np.uint32)
    for place, number in enumerate(numbers):
        own = _shingles(text(number))
        mixed = own ^ (own >> np.uint64(29))
        minima[place] = ((mixed[:, None] * factors + terms) >> np.uint64(32)).min(axis=0)

    @lru_cache(maxsize=4096)
    def shingles(place: int) -> NDArray[Any]:
        return _shingles(text(numbers[place]))

    candidates = _candidates(minima)
    result.whole = result.whole and len(candidates) <= MOST_PAIRS
    for a, b in sorted(candidates)[:MOST_PAIRS]:
        # The estimate has a deviation of 0.04 at the threshold: far below it no exact comparison is needed.
        if (minima[a] == minima[b]).mean() < THRESHOLD - 0.2:
            continue
        left, right = shingles(a), shingles(b)
        common = len(np.intersect1d(left, right, assume_unique=True))
        similarity = common / (len(left) + len(right) - common)
        if similarity >= THRESHOLD:
            first, second = sorted((numbers[a], numbers[b]))
            result.pairs.append((first, second, round(similarity, 3)))
    result.pairs.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    return result


def _shingles(text: str) -> NDArray[Any]:
    """Hashes of the shingles of a text, each once; a shorter text is one shingle."""
    points = np.frombuffer(text[:MOST_CHARACTERS].encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    size = min(SHINGLE, len(points))
    count = len(points) - size + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(size):  # a polynomial modulo 2**64, on all shingles at once
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + points[place : place + count]
    return np.unique(hashes)


def _candidates(minima: NDArray[Any]) -> set[tuple[int, int]]:
    """Pairs that agree in at least one band."""
    found: set[tuple[int, int]] = set()
    for band in range(BANDS):
        buckets: dict[bytes, list[int]] = {}
        for place, row in enumerate(minima[:, band * BAND : (band + 1) * BAND]):
            buckets.setdefault(row.tobytes(), []).append(place)
        for bucket in buckets.values():
            firsts = bucket if len(bucket) <= CROWD else bucket[:1]
            found.update((a, b) for i, a in enumerate(firsts) for b in bucket[i + 1 :])
        if len(found) > 4 * MOST_PAIRS:
            break
    return found


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
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) or 1) if text else 0
