"""The data of a run: examples and encoded rows of each side, with counts of what became of every row."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from luthier.data.formats.base import FORMATS, Format
from luthier.data.mix import Portion
from luthier.data.rows import Rows
from luthier.data.store import DataFolder, Examples, Refusals
from luthier.tasks.base import TASKS, Task

if TYPE_CHECKING:
    from luthier.data.stream import Stream


@dataclass(slots=True)
class SplitCounts:
    """Rows of one side: read + repeated = kept + refused + duplicates + by_weight + over_limit + leaks."""

    source: str = ""
    read: int = 0
    refused: int = 0
    duplicates: int = 0
    """Rows equal to an earlier one, left out by data.deduplicate."""
    by_weight: int = 0
    """Rows left out by a weight below 1 in a mix."""
    repeated: int = 0
    """Copies of rows made by a weight above 1 in a mix."""
    over_limit: int = 0
    leaks: int = 0
    """Training rows equal to a validation row, left out by data.on_leak."""
    in_training: int = 0
    """Validation rows that are training rows too, before data.on_leak drops those."""
    kept: int = 0
    windows: int = 0
    """Rows after long texts were split."""
    cut: int = 0
    """Rows from which a truncation policy took tokens."""
    cut_tokens: int = 0
    tokens: int = 0
    learned: int = 0
    """Tokens that carry loss."""
    longest: int = 0
    """Tokens of the longest row."""
    labels: dict[str, int] = field(default_factory=dict)


class Side(NamedTuple):
    """Counts, examples and encoded rows of one side."""

    counts: SplitCounts
    examples: Examples
    rows: Rows


SIDES = ("train", "validation", "test")


def _prefix(side: str) -> str:
    return "" if side == "train" else f"{side}_"


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
    train: SplitCounts
    validation: SplitCounts
    test: SplitCounts
    fingerprint: str
    """SHA-256 over the examples of all sides, in order: equal data, equal fingerprint."""
    files: list[dict[str, str]] = field(default_factory=list)
    """Each file that rows were read from, with the encoding of its text."""
    portions: list[Portion] = field(default_factory=list)
    """Counts of each set, where several are mixed or one has a weight."""
    rows: Rows = field(default_factory=lambda: Rows(DataFolder(), "train"))
    validation_rows: Rows = field(default_factory=lambda: Rows(DataFolder(), "validation"))
    test_rows: Rows = field(default_factory=lambda: Rows(DataFolder(), "test"))
    stream: "Stream | None" = None
    """The training rows, where they are read while the run trains; `examples` and `rows` are empty then."""
    template_source: str = ""
    labels: tuple[str, ...] = ()
    """Labels of the training rows, where those are not at hand."""
    decided: dict[str, Any] = field(default_factory=dict)
    """What was guessed or asked for, for the recipe of the run: the spec of `format`, of `mix.0` and of `task`."""

    @classmethod
    def of(cls, examples: Mapping[str, Examples], counts: Mapping[str, SplitCounts], **more: Any) -> "Prepared":
        """The data with the examples and counts of each side."""
        sides: dict[str, Any] = {f"{_prefix(side)}examples": examples[side] for side in SIDES}
        return cls(**{**sides, **counts, **more})

    @classmethod
    def restored(
        cls, account: Mapping[str, Any], examples: Mapping[str, Examples], refusals: Refusals, **more: Any
    ) -> "Prepared":
        """The data of an earlier run from its `account`."""
        counts = {side: SplitCounts(**account[side]) for side in SIDES}
        known = {"format": FORMATS.parse(account["format"]), "task": TASKS.parse(account["task"]), "refusals": refusals}
        known |= {key: account[key] for key in ("format_why", "fingerprint", "files")}
        return cls.of(examples, counts, **{"template_source": account["template"], **known, **more})

    @property
    def held_out_side(self) -> str:
        """The side that the model is measured on."""
        return "test" if self.test_rows else "validation"

    def side(self, name: str) -> Side:
        """`train`, `validation` or `test`."""
        return Side(*(getattr(self, key) for key in (name, f"{_prefix(name)}examples", f"{_prefix(name)}rows")))

    def fill(self, name: str, examples: Examples, rows: Rows) -> None:
        """Set the encoded rows of a side, and the examples that have any."""
        setattr(self, f"{_prefix(name)}examples", examples)
        setattr(self, f"{_prefix(name)}rows", rows)

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
            **{side: asdict(getattr(self, side)) for side in SIDES},
        }
