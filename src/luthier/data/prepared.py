"""What the data of a run has become, with an account of every row."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from luthier.data.formats.base import Format
from luthier.data.mix import Portion
from luthier.data.rows import Rows
from luthier.data.store import Examples, Place, Refusals
from luthier.tasks.base import Task

if TYPE_CHECKING:
    from luthier.data.stream import Stream


@dataclass(slots=True)
class Part:
    """The account of one side. read + repeated = kept + refused + duplicates + by_weight + over_limit + leaks."""

    source: str = ""
    read: int = 0
    refused: int = 0
    duplicates: int = 0
    """Rows that were the same as an earlier one, left out by data.deduplicate."""
    by_weight: int = 0
    """Rows left out by a weight below 1 in a mix."""
    repeated: int = 0
    """Copies of rows made by a weight above 1 in a mix."""
    over_limit: int = 0
    leaks: int = 0
    """Training rows that were the same as a validation row, left out by data.on_leak."""
    in_training: int = 0
    """Validation rows that stand in the training rows too, before data.on_leak drops those."""
    kept: int = 0
    windows: int = 0
    """Rows after long texts were split."""
    cut: int = 0
    """Rows from which a truncation policy took tokens."""
    cut_tokens: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    labels: dict[str, int] = field(default_factory=dict)


class Side(NamedTuple):
    """Account, examples and encoded rows of one side."""

    part: Part
    examples: Examples
    rows: Rows


SIDES = ("train", "validation", "test")


@dataclass(slots=True)
class Prepared:
    """Examples and rows of all sides, and what was done to get there."""

    format: Format
    format_why: str
    task: Task
    examples: Examples
    validation_examples: Examples
    test_examples: Examples
    refusals: Refusals
    train: Part
    validation: Part
    test: Part
    fingerprint: str
    """SHA-256 over the examples of all sides, in order: equal data, equal fingerprint."""
    files: list[dict[str, str]] = field(default_factory=list)
    """Each file that rows were read from, with the encoding of its text."""
    portions: list[Portion] = field(default_factory=list)
    """The account of each set, where several are mixed or one has a weight."""
    rows: Rows = field(default_factory=lambda: Rows(Place(), "train"))
    validation_rows: Rows = field(default_factory=lambda: Rows(Place(), "validation"))
    test_rows: Rows = field(default_factory=lambda: Rows(Place(), "test"))
    stream: Stream | None = None
    """The training rows, where they are read while the run trains; `examples` and `rows` are empty then."""
    template_source: str = ""
    labels: tuple[str, ...] = ()
    """Of the training rows, where those are not at hand."""
    decided: dict[str, Any] = field(default_factory=dict)
    """What was guessed or asked for, for the recipe of the run: the spec of `format`, of `mix.0` and of `task`."""

    @property
    def held_out_side(self) -> str:
        """The side that the model is measured on."""
        return "test" if self.test_rows else "validation"

    def side(self, name: str) -> Side:
        """`train`, `validation` or `test`."""
        prefix = "" if name == "train" else f"{name}_"
        return Side(getattr(self, name), getattr(self, f"{prefix}examples"), getattr(self, f"{prefix}rows"))

    def fill(self, name: str, examples: Examples, rows: Rows) -> None:
        """Put encoded rows in, with the examples that have any."""
        prefix = "" if name == "train" else f"{name}_"
        setattr(self, f"{prefix}examples", examples)
        setattr(self, f"{prefix}rows", rows)

    def account(self) -> dict[str, Any]:
        """What goes into data.json."""
        return {
            "format": self.format.spec(),
            "format_why": self.format_why,
            "task": self.task.spec(),
            "template": self.template_source,
            "fingerprint": self.fingerprint,
            "files": self.files,
            "mix": [asdict(portion) for portion in self.portions],
            "train": asdict(self.train),
            "validation": asdict(self.validation),
            "test": asdict(self.test),
        }
