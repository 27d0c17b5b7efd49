"""What is asked: the task and its rows, the base, and what the machine, the budget and the use allow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import InputError
from luthier.planning.advisor.evidence import Learns

if TYPE_CHECKING:
    from luthier.data.prepared import Prepared

LENGTH = 512
"""Tokens of a row where no data is read and the recipe names no train.max_length."""
LOOKED = 2000
"""Rows that are looked at for answers that repeat and for languages."""
FEW_ANSWERS = 20
"""As many different answers, each in ten rows on average, count as labels in words."""

SIZES = {
    "": 1,
    "b": 1,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
TIMES = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def size_of(text: str) -> int:
    """`12GB` or `12GiB` in bytes. InputError for anything else, and for less than a megabyte."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not found or found[2] not in SIZES:
        raise InputError(f"--memory: {text!r} is no size", fix="for example --memory 12GB or --memory 24GiB")
    size = int(float(found[1]) * SIZES[found[2]])
    if size < 1e6:
        raise InputError(
            f"--memory: {text} is {size:,} bytes, too little for any model", fix="a unit is missing? --memory 12GB"
        )
    return size


def seconds_of(text: str) -> float:
    """`90s`, `30min`, `2h` or `1d` in seconds. InputError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not found or found[2] not in TIMES or not float(found[1]):
        raise InputError(f"--time: {text!r} is no time", fix="for example --time 2h or --time 45min")
    return float(found[1]) * TIMES[found[2]]


def latency_of(text: str) -> float | Literal["merged"]:
    """`merged`, or milliseconds for each token. InputError for anything else."""
    if text == "merged":
        return "merged"
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"--latency: {text!r} is neither 'merged' nor milliseconds", fix="--latency merged")
    return value


def count_of(value: int | None, option: str) -> int | None:
    """A whole number above zero, or None. InputError that names the option."""
    if value is not None and value < 1:
        raise InputError(f"{option}: {value} is less than one", fix=f"{option} 1")
    return value


@dataclass(frozen=True, slots=True)
class Wish:
    """What the machine, the budget and the use allow; None is what this machine and the data have."""

    variants: int = 1
    """Tuned models to be kept and served beside one another."""
    latency: float | Literal["merged"] | None = None
    """Milliseconds that a token may take, or no more than the base's own."""
    memory: int | None = None
    """Bytes of one device of another machine."""
    devices: int = 1
    time: float | None = None
    """Seconds of training."""
    rows: int | None = None
    """Training rows, where no data is to be read."""

    @classmethod
    def said(
        cls,
        *,
        variants: int | None = None,
        latency: str | None = None,
        memory: str | None = None,
        devices: int | None = None,
        time: str | None = None,
        rows: int | None = None,
    ) -> Wish:
        """From what was typed. InputError that names the option."""
        return cls(
            variants=count_of(variants, "--variants") or 1,
            latency=None if latency is None else latency_of(latency),
            memory=None if memory is None else size_of(memory),
            devices=count_of(devices, "--devices") or 1,
            time=None if time is None else seconds_of(time),
            rows=count_of(rows, "--rows"),
        )


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of rows and task."""

    learns: Learns
    rows: int
    """Training rows, after long texts were split."""
    lengths: Sequence[int]
    learned: Sequence[int]
    labels: tuple[str, ...] | None
    """Of a classifier."""
    languages: dict[str, int] = field(default_factory=dict)
    """Of some of the rows; empty where they were not looked at."""
    languages_are: Literal["languages", "scripts", ""] = ""
    answers: int = 0
    """Different answers among the rows looked at, where they are labels in words."""
    assumed: str = ""
    """What is not known and was assumed."""

    @property
    def mean_length(self) -> float:
        """Tokens of a row."""
        return sum(self.lengths) / len(self.lengths)

    def said(self) -> str:
        """In a line."""
        what = {
            "classify": f"{len(self.labels or ())} classes, a classification head",
            "labels": f"{self.answers} different answers",
            "answers": "free answers",
            "text": "plain text",
        }[self.learns]
        looked = sum(self.languages.values())
        told = ", ".join(f"{name} {rows / looked:.0%}" for name, rows in list(self.languages.items())[:3])
        lengths = f"{self.mean_length:,.0f} tokens a row on average, {max(self.lengths):,} at most"
        return f"{self.rows:,} training rows, {lengths}, {what}" + (f"; {told}" if told else "")


def assumed(rows: int, task: str, labels: tuple[str, ...] | None, max_length: int | None, limit: int | None) -> Facts:
    """Rows that nobody has seen: all of one length, half of it learned."""
    length = min(max_length or LENGTH, limit or LENGTH * 10)
    some = [length] * min(rows, 6400)
    learns: Learns = {"classify": "classify", "complete": "text"}.get(task, "answers")  # type: ignore[assignment]
    said = f"no data was read: {rows:,} rows of {length:,} tokens"
    if learns == "classify":
        labels = labels or ("0", "1")
        said += f" and {len(labels)} classes"
        return Facts(learns, rows, some, [1] * len(some), labels, assumed=said + " are assumed")
    learned = length if learns == "text" else length // 2
    said += "" if learns == "text" else ", half of them learned,"
    return Facts(learns, rows, some, [learned] * len(some), None, assumed=said + " are assumed")


def facts_of(data: Prepared, labels: tuple[str, ...] | None) -> Facts:
    """Of rows that were read and encoded."""
    some = [data.examples[i] for i in range(0, len(data.examples), max(1, len(data.examples) // LOOKED))][:LOOKED]
    answers = Counter(example.answer for example in some)
    learns: Learns = "text" if data.task.name == "complete" else "answers"
    if labels is not None:
        learns = "classify"
    elif learns == "answers" and len(answers) <= FEW_ANSWERS and 10 * len(answers) <= len(some):
        learns = "labels"
    told, kind = _languages([_text(example) for example in some[:200]])
    return Facts(
        learns,
        len(data.rows),
        data.rows.lengths,
        data.rows.learned,
        labels,
        told,
        kind,
        len(answers) if learns == "labels" else 0,
    )


def _text(example: Any) -> str:
    return example.text or " ".join(message.content for message in example.messages if message.role != "system")


def _languages(texts: list[str]) -> tuple[dict[str, int], Literal["languages", "scripts"]]:
    from luthier.data.checks import languages, scripts

    if languages.available():
        return languages.languages(texts), "languages"
    return scripts.scripts(texts), "scripts"
