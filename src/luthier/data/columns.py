"""What a column of unknown data may hold, from its name and its values."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

_WORDS = yaml.safe_load((Path(__file__).parent / "vocabulary.yaml").read_text(encoding="utf-8"))
VOCABULARY = {key: frozenset(words.split()) for key, words in _WORDS.items()}
LABEL = ("label 1", "label 2", "label 3")
IDENTIFIER = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{18,}|[0-9a-f]{16,64}|https?://\S+|\d{4}-\d\d?-\d\d?\b.{0,20}"
)
NUMBER = re.compile(r"[-+]?\d{1,15}(\.\d{1,15})?")
HAN = re.compile(r"[\u3400-\u9fff]")
LONG = 20
"""Characters from which a column of strings without a telling name holds texts; a Chinese character counts as three."""
SHORT = 40
"""Characters that a label has at most."""


def size(text: str) -> int:
    """Length of a text, where a Chinese character counts as three."""
    return len(text) + 2 * len(HAN.findall(text))


@dataclass(frozen=True)
class Column:
    """One column of the first rows, without its empty values."""

    name: str
    values: Sequence[Any]
    rows: int

    @classmethod
    def of(cls, name: str, rows: Sequence[Mapping[str, Any]]) -> "Column":
        values = [row.get(name) for row in rows]
        full = [value for value in values if value not in (None, "", [], {}) and str(value).strip()]
        return cls(name, full, len(rows))

    @cached_property
    def words(self) -> list[str]:
        """The words of the name: `questionText` and `question_text` have two. A number after a word is a word."""
        split = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=\d)|(?<=[A-Z])(?=[A-Z][a-z])", " ", self.name)
        return re.findall(r"\d+|[^\W\d_]+", split.lower())

    def named(self, kind: str) -> int:
        """2 where the whole name is in this vocabulary, 1 where a word of it is, else 0."""
        words = [word for word in self.words if not word.isdigit()]
        if "".join(words) in VOCABULARY[kind]:
            return 2
        words = [word for word in words if len(word) > 1]  # one letter counts only as a whole name: q, a, sentence_A
        return int(any(word in VOCABULARY[kind] or _contains(word, kind) for word in words))

    @cached_property
    def strings(self) -> bool:
        return bool(self.values) and all(isinstance(value, str) for value in self.values)

    @cached_property
    def numbers(self) -> list[float]:
        """The values where all of them are numbers, also as text in a csv file; else none."""
        texts = [str(value).strip() if isinstance(value, str | int | float) else "" for value in self.values]
        return [float(text) for text in texts] if all(map(NUMBER.fullmatch, texts)) else []

    @cached_property
    def fractions(self) -> bool:
        return any(not number.is_integer() for number in self.numbers)

    @cached_property
    def distinct(self) -> int:
        return len({str(value) for value in self.values})

    @cached_property
    def mean(self) -> float:
        """Mean size of the values as text."""
        return sum(size(str(value)) for value in self.values) / max(1, len(self.values))

    @cached_property
    def metadata(self) -> bool:
        """Is this about the row: empty, an id, a date, an address, a count?"""
        if not self.values:
            return True
        if isinstance(self.values[0], list | Mapping):
            return False
        if all(isinstance(value, str) and IDENTIFIER.fullmatch(value.strip()) for value in self.values):
            return True
        words, known = self.words, VOCABULARY["metadata"]
        about = bool(words) and (
            words[-1] in known
            or (len(words) > 1 and words[-1].isdigit() and words[-2] in known)
            or not {"id", "ids", "qid", "url", "date", "count", "confidence", "votes"}.isdisjoint(words)
            or self.named("metadata") == 2
            or (words[-1].endswith("id") and self.distinct > len(self.values) / 2)
            or any(_contains(word, "metadata") and self.mean < LONG for word in words)
        )
        dated = all(any(sign.isdigit() for sign in str(value)) for value in self.values) and self.mean < 2 * LONG
        judged = self.label_name and self.numbers and self.distinct <= self.rows / 2  # such as `Class Index`
        if about and (dated or not self.long) and not judged:
            return True
        counted = bool(self.numbers) and not self.fractions
        return counted and self.distinct > max(20, len(self.values) * 0.6) and not self.label_name

    @cached_property
    def label_name(self) -> int:
        """How much the name is that of a label: 6 where it is nothing else, down to 1, else 0."""
        if self.words[:1] == ["is"] and len(self.words) > 1:
            return 6
        found = [(self.named(kind), 3 - tier) for tier, kind in enumerate(LABEL)]
        return max((2 * rank if whole == 2 else rank for whole, rank in found if whole), default=0)

    @cached_property
    def whole_label_name(self) -> bool:
        """Is the name that of a label and nothing else?"""
        return self.words[:1] == ["is"] or self.words == ["gold", "label"] or any(self.named(k) == 2 for k in LABEL)

    @cached_property
    def long(self) -> bool:
        """Are these texts, whatever their name?"""
        spaced = sum(" " in str(value).strip() or bool(HAN.search(str(value))) for value in self.values)
        return self.strings and self.mean >= LONG and spaced > len(self.values) / 2 and not self.numbers

    @cached_property
    def text(self) -> bool:
        """May this be a text to classify, a prompt or an answer?"""
        if not self.strings or self.metadata or self.numbers:
            return False
        telling = any(map(self.named, ("prompt", "answer", "text", "title", "material")))
        several = self.distinct > 2 or self.rows < 4 or self.name == "text"
        return self.long or (telling and several) or self.named("language") == 2

    @cached_property
    def label(self) -> bool:
        """May these be labels: short, and few or with a label's name?"""
        if self.metadata or not self.values or not all(isinstance(v, str | int | float) for v in self.values):
            return False
        if self.fractions:
            return True
        few = self.distinct <= max(2, len(self.values) // 2) and self.rows >= 4
        if self.numbers or isinstance(self.values[0], bool):
            return (few and self.distinct > 1) or (bool(self.label_name) and self.distinct <= max(20, self.rows / 2))
        short = self.mean <= SHORT and sum(len(str(v).split()) for v in self.values) <= 4 * len(self.values)
        return short and ((few and self.distinct > 1 and len(self.values) == self.rows) or bool(self.label_name))

    @cached_property
    def stem(self) -> str:
        """The name without the number or letter by which two columns of a pair differ."""
        return re.sub(r"(?<![^\W_])[ab12](?![^\W_])|(?<=[^\W\d])[12]$|(?<=[a-z])[AB]$|(?<=_)[ab]$", "", self.name)

    @cached_property
    def turns(self) -> tuple[str, str] | None:
        """Keys of the speaker and of the text, where the values are lists of turns."""
        if not self.values or not all(isinstance(value, list) and value for value in self.values):
            return None
        first = self.values[0][0]
        if not isinstance(first, Mapping):
            return None
        speaker = next((key for key in first if key in ("role", "from", "speaker")), None)
        content = next((key for key in first if key in ("value", "content", "text")), None)
        return (speaker, content) if speaker and content else None


def _contains(word: str, kind: str) -> bool:
    """Is a Chinese word of this vocabulary inside the word? Chinese names are written without spaces."""
    return any(len(each) > 1 and HAN.match(each) and each in word for each in VOCABULARY[kind])
