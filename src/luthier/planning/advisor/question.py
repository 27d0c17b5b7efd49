"""The question that `luthier choose` answers: task and rows, and what machine, budget and use allow."""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ByteSize, TypeAdapter, ValidationError

from luthier.core.errors import InputError
from luthier.planning.advisor.evidence import Learns
from luthier.tasks.base import Task

if TYPE_CHECKING:
    from luthier.data.prepared import Prepared

LENGTH = 512
"""Tokens of a row where no data is read and the recipe sets no train.max_length."""
LOOKED = 2000
"""Rows that are looked at for answers that repeat and for languages."""
FEW_ANSWERS = 20
"""Up to so many distinct answers, each in ten rows on average, count as labels in words."""

TIMES = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def size_of(text: str) -> int:
    """`12GB` or `12GiB` in bytes. InputError for anything else, and for less than a megabyte."""
    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        fix = "for example --memory 12GB or --memory 24GiB"
        raise InputError(f"--memory: {text!r} is not a size", fix=fix) from None
    if size < 1e6:
        why = f"--memory: {text} is {int(size):,} bytes, too little for any model"
        raise InputError(why, fix="add the unit: --memory 12GB")
    return int(size)


def seconds_of(text: str, option: str = "--time", *, default_unit: str = "s") -> float:
    """`90s`, `30min`, `2h` or `1d` in seconds; InputError for anything else.

    A bare number counts in `default_unit`; with the default unit "" it is an error too.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    seconds = float(found[1]) * TIMES.get(found[2] or default_unit, 0) if found else 0.0
    if not seconds:
        raise InputError(f"{option}: {text!r} is not a time", fix=f"for example {option} 2h or {option} 45min")
    return seconds


def latency_of(text: str) -> float | Literal["merged"]:
    """`merged`, or milliseconds for each token. InputError for anything else."""
    if text == "merged":
        return "merged"
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise InputError(f"--latency: {text!r} is neither 'merged' nor milliseconds", fix="--latency merged")


@dataclass(frozen=True, slots=True)
class ChooseOptions:
    """What machine, budget and use allow; None stands for this machine and the data."""

    variants: int = 1
    """Tuned models to be kept and served beside one another."""
    latency: float | Literal["merged"] | None = None
    """Most milliseconds per token, or no more than the base's own."""
    memory: int | None = None
    """Bytes of one device of another machine."""
    devices: int = 1
    time: float | None = None
    """Most seconds of training."""
    rows: int | None = None
    """Training rows; then no data is read."""

    @classmethod
    def parse(cls, **given: str | int | None) -> "ChooseOptions":
        """The options from their text or number on the command line. InputError that names the option."""
        for option, value in given.items():
            if isinstance(value, int) and value < 1:
                raise InputError(f"--{option}: {value} is less than one", fix=f"--{option} 1")
        read: dict[str, Any] = {"latency": latency_of, "memory": size_of, "time": seconds_of}
        return cls(**{key: read.get(key, int)(value) for key, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What is known about the rows and the task."""

    learns: Learns
    rows: int
    """Training rows, after long texts were split."""
    lengths: Sequence[int]
    learned: Sequence[int]
    labels: tuple[str, ...] | None
    """The classes of a classifier."""
    languages: dict[str, int] = field(default_factory=dict)
    """Language or script -> rows, of some of the rows; empty where no rows were read."""
    answers: int = 0
    """Distinct answers among the rows looked at, where they are labels in words."""
    assumed: str = ""
    """Assumptions made where no data was read."""

    @property
    def mean_length(self) -> float:
        """Mean tokens of a row."""
        return sum(self.lengths) / len(self.lengths)

    def summary(self) -> str:
        """The facts in one line."""
        what = {
            "classify": f"{len(self.labels or ())} classes, a classification head",
            "labels": f"{self.answers} different answers",
            "answers": "free answers",
            "text": "plain text",
        }[self.learns]
        looked = sum(self.languages.values())
        shares = ", ".join(f"{name} {rows / looked:.0%}" for name, rows in list(self.languages.items())[:3])
        lengths = f"{self.mean_length:,.0f} tokens a row on average and {max(self.lengths):,} at most"
        return f"{self.rows:,} training rows; {lengths}; {what}" + (f"; {shares}" if shares else "")


def assumed_facts(rows: int, task: Task, max_length: int | None, limit: int | None) -> DataFacts:
    """The facts of rows that are not there yet: all of one length, half of it learned."""
    length = min(max_length or LENGTH, limit or LENGTH * 10)
    some = [length] * min(rows, 6400)
    note = f"no data was read: {rows:,} rows of {length:,} tokens"
    if task.name == "classify":
        labels = tuple(getattr(task, "labels", ())) or ("0", "1")
        note += f" and {len(labels)} classes are assumed"
        return DataFacts("classify", rows, some, [1] * len(some), labels, assumed=note)
    if task.name == "complete":
        return DataFacts("text", rows, some, some, None, assumed=f"{note} are assumed")
    learned = [length // 2] * len(some)
    return DataFacts("answers", rows, some, learned, None, assumed=f"{note}, half of them learned, are assumed")


def facts_of(data: "Prepared", labels: tuple[str, ...] | None) -> DataFacts:
    """The facts of rows that were read and tokenized."""
    from luthier.data.checks.languages import available, languages, script

    some = [data.examples[i] for i in range(0, len(data.examples), max(1, len(data.examples) // LOOKED))][:LOOKED]
    answers = Counter(example.answer for example in some)
    learns: Learns = "text" if data.task.name == "complete" else "answers"
    if labels is not None:
        learns = "classify"
    elif learns == "answers" and len(answers) <= FEW_ANSWERS and 10 * len(answers) <= len(some):
        learns = "labels"
    texts = [e.text or " ".join(m.content for m in e.messages if m.role != "system") for e in some[:200]]
    return DataFacts(
        learns,
        len(data.rows),
        data.rows.lengths,
        data.rows.learned,
        labels,
        languages(texts) if available() else dict(Counter(map(script, texts)).most_common()),
        len(answers) if learns == "labels" else 0,
    )
