"""The data of a run: examples and encoded rows of each side, with counts of what became of every row."""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from luthier.core.errors import InputError
from luthier.core.events import Progress
from luthier.data.formats.base import FORMATS, Format
from luthier.data.read import BY_FORMAT, HUB
from luthier.data.store import DataFolder, Examples, OnDisk, Records, Refusals, Store
from luthier.rendering.example import Example, Message, RowError
from luthier.rendering.row import Row
from luthier.tasks.base import TASKS, Task

if TYPE_CHECKING:
    from luthier.data.stream import Stream

SIDES = ("train", "validation", "test")
STAND_INS = 100
"""Training examples that are kept where none is held out: the parity checks of exports replay some."""
TOKEN = "i"
"""Type of a token id or label on disk: int32."""
BLOCK = 10_000  # rows that are searched at once
NUMBERS = {"ends": "Q", "lengths": "I", "cut": "I", "learned": "I", "owner": "Q", "kept": "Q"}
"""Arrays of `Rows` that are in memory, with their types."""


@dataclass(slots=True)
class Encoded:
    """The rows of some examples, in order and flat, and the examples that gave none."""

    flat: "array[int]" = field(default_factory=partial(array, TOKEN))
    """The token ids of each row, then its labels."""
    ends: "array[int]" = field(default_factory=partial(array, "Q"))
    """Where each row ends in `flat`."""
    lengths: "array[int]" = field(default_factory=partial(array, "I"))
    """Tokens of each row."""
    cut: "array[int]" = field(default_factory=partial(array, "I"))
    """Tokens that were cut from each row."""
    learned: "array[int]" = field(default_factory=partial(array, "I"))
    """Tokens of each row that carry loss."""
    owner: "array[int]" = field(default_factory=partial(array, "Q"))
    """Number of each row's example among those that have rows."""
    kept: "array[int]" = field(default_factory=partial(array, "Q"))
    """Places of the examples that have rows among all examples."""
    failures: dict[int, tuple[RowError, int]] = field(default_factory=dict)
    """Place of each other example -> its error, and the tokens of its longest row where that is too long."""
    whole: "array[int]" = field(default_factory=partial(array, "I"))
    """Tokens of each row without the limit, where they were asked for."""

    def add(self, row: Row, owner: int) -> None:
        """Append a row; `owner` is the number of its example."""
        self.flat.extend(row.ids)
        self.flat.extend(row.labels)
        self.ends.append(len(self.flat))
        self.lengths.append(len(row.ids))
        self.cut.append(row.cut)
        self.learned.append(row.learned)
        self.owner.append(owner)


class Rows(OnDisk[Row]):
    """The rows of one side. In memory are some tens of bytes for each: the arrays of `Encoded`."""

    def __init__(self, folder: DataFolder, side: str, kept: "Mapping[str, array[int]] | None" = None) -> None:
        """Without rows, or with those whose file is in `folder`: then `kept` is what `state` returned."""
        arrays = {name: kept[f"{side}.{name}"] if kept else array(code) for name, code in NUMBERS.items()}
        self.side, self._records = side, Records(folder, f"{side}.rows", arrays["ends"])
        self.lengths, self.cut, self.learned = arrays["lengths"], arrays["cut"], arrays["learned"]
        self.owner, self.kept = arrays["owner"], arrays["kept"]
        self.examples: Examples | None = None
        """The examples of the rows, once all rows are added."""

    @classmethod
    def of(cls, side: str, examples: Examples, rows: Iterable[tuple[int, Row]]) -> "Rows":
        """These rows, each after the number of its example in `examples`."""
        made, encoded = cls(DataFolder(), side), Encoded()
        for owner, row in rows:
            encoded.add(row, owner)
        made.extend(encoded)
        made.examples = examples
        return made

    def extend(self, rows: Encoded, begin: int = 0) -> None:
        """Append the rows of the examples from place `begin` on."""
        start, size = self._records.ends[-1], rows.flat.itemsize
        self._records.extend(rows.flat.tobytes(), (start + size * end for end in rows.ends))
        self.lengths.extend(rows.lengths)
        self.cut.extend(rows.cut)
        self.learned.extend(rows.learned)
        before = len(self.kept)
        self.owner.extend(before + owner for owner in rows.owner)
        self.kept.extend(begin + place for place in rows.kept)

    def state(self) -> "dict[str, array[int]]":
        """The arrays of the rows, for another start. Closes the file."""
        self._records.close()
        arrays = {"ends": self._records.ends} | {name: getattr(self, name) for name in NUMBERS if name != "ends"}
        return {f"{self.side}.{name}": numbers for name, numbers in arrays.items()}

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, number: int) -> Row:
        both, length = array(TOKEN, self._records[number]).tolist(), self.lengths[number]
        return Row(both[:length], both[length:], self.where(number), self.cut[number])

    def containing(self, tokens: set[int], *, learned: bool = False) -> Iterator[int]:
        """Numbers of the rows with one of these tokens, or that learn one; the first token of a row is not a target."""
        ends = np.frombuffer(self._records.ends, np.uint64).astype(np.int64) // array(TOKEN).itemsize
        for begin in range(0, len(self), BLOCK):
            marks = ends[begin : begin + BLOCK + 1]
            flat = np.frombuffer(self._records.between(begin, begin + len(marks) - 1), np.int32)
            hits = np.flatnonzero(np.isin(flat, list(tokens))) + marks[0]
            rows = np.searchsorted(marks, hits, side="right") - 1
            places = hits - marks[rows] - np.frombuffer(self.lengths, np.uint32).astype(np.int64)[begin + rows]
            yield from (begin + np.unique(rows[places > 0 if learned else places < 0])).tolist()

    def where(self, number: int) -> str:
        """File and line of a row's example."""
        return self.examples.where(self.owner[number]) if self.examples is not None else ""


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

    def add(self, examples: int, rows: Encoded | Rows) -> None:
        """Count so many examples with these rows."""
        self.kept += examples
        self.windows += len(rows.lengths)
        self.cut += sum(cut > 0 for cut in rows.cut)
        self.cut_tokens += sum(rows.cut)
        self.tokens += sum(rows.lengths)
        self.learned += sum(rows.learned)
        self.longest = max(self.longest, max(rows.lengths, default=0))


@dataclass(slots=True)
class Portion:
    """Rows of one set in a mix: read + repeated = refused + duplicates + held out + by weight + rows."""

    source: str
    weight: float
    read: int = 0
    refused: int = 0
    duplicates: int = 0
    held_out: int = 0
    by_weight: int = 0
    """Rows left out by a weight below 1."""
    repeated: int = 0
    """Copies made by a weight above 1."""
    rows: int = 0
    """Rows of an epoch, before data.limit and data.on_leak."""
    format: dict[str, Any] = field(default_factory=dict)


class Side(NamedTuple):
    """Counts, examples and encoded rows of one side."""

    counts: SplitCounts
    examples: Examples
    rows: Rows


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
    def restored(
        cls, account: Mapping[str, Any], examples: Mapping[str, Examples], refusals: Refusals, **more: Any
    ) -> "Prepared":
        """The data of an earlier run from its `account`."""
        known: dict[str, Any] = {f"{_prefix(side)}examples": examples[side] for side in SIDES}
        known |= {side: SplitCounts(**account[side]) for side in SIDES}
        known |= {"format": FORMATS.parse(account["format"]), "task": TASKS.parse(account["task"])}
        known |= {key: account[key] for key in ("format_why", "fingerprint", "files")}
        known |= {"template_source": account["template"], "portions": [Portion(**each) for each in account["mix"]]}
        return cls(refusals=refusals, **known, **more)

    @classmethod
    def from_held_out(cls, path: Path) -> "Prepared":
        """The data of a run from its held_out.jsonl, as far as measuring needs it: tokens, labels and counts."""
        store, rows = Store(), []
        try:
            with path.open(encoding="utf-8") as file:
                head = json.loads(file.readline())
                for owner, line in enumerate(file):
                    kept = json.loads(line)
                    for name in {"messages", "rejected"} & kept["example"].keys():
                        kept["example"][name] = tuple(Message(**each) for each in kept["example"][name])
                    example = Example(**kept["example"])
                    store.add(example)
                    rows += [(owner, Row(row["ids"], row["labels"], example.where, row["cut"])) for row in kept["rows"]]
            none = dict.fromkeys(SIDES, Examples(store, ()))
            account = {**head["account"], "format_why": head["format_why"]}
            data = cls.restored(account, none, Refusals(), labels=tuple(head["labels"]))
            data.fill(Rows.of(head["side"], Examples(store, range(len(store))), rows))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read: {error}", fix="restore it from a copy of the run") from error
        return data

    def held_out_lines(self) -> Iterator[dict[str, Any]]:
        """The lines of held_out.jsonl: what is common to the rows, then each test or validation example with tokens."""
        side = self.held_out_side if self.side(self.held_out_side).rows else "train"
        _, examples, rows = self.side(side)
        labels = sorted({label for label in (*self.examples.labels, *examples.labels) if label is not None})
        yield {"side": side, "account": self.account(), "format_why": self.format_why, "labels": labels}
        for owner, numbers in groupby(range(len(rows)), key=rows.owner.__getitem__):
            if side == "train" and owner >= STAND_INS:
                return
            made = [rows[number] for number in numbers]
            tokens = [{"ids": row.ids, "labels": row.labels, "cut": row.cut} for row in made]
            yield {"example": {k: v for k, v in asdict(examples[owner]).items() if v or k == "label"}, "rows": tokens}

    @property
    def held_out_side(self) -> str:
        """The side that the model is measured on."""
        return "test" if self.test_rows else "validation"

    def side(self, name: str) -> Side:
        """`train`, `validation` or `test`."""
        return Side(*(getattr(self, key) for key in (name, f"{_prefix(name)}examples", f"{_prefix(name)}rows")))

    def fill(self, rows: Rows) -> None:
        """Set the encoded rows of a side, and the examples that have any."""
        setattr(self, f"{_prefix(rows.side)}examples", rows.examples)
        setattr(self, f"{_prefix(rows.side)}rows", rows)

    def hold_out_all(self) -> None:
        """Make the encoded training rows validation rows, so that all of them are measured."""
        self.rows.side = "validation"
        self.validation, self.validation_examples, self.validation_rows = self.train, self.examples, self.rows
        self.train, self.examples, self.rows = SplitCounts(), Examples(Store(), ()), Rows(DataFolder(), "train")

    def account(self) -> dict[str, Any]:
        """What goes into data.json."""
        made: dict[str, Any] = {"format": self.format.spec(), "format_why": self.format_why, "task": self.task.spec()}
        made |= {"template": self.template_source, "fingerprint": self.fingerprint, "files": self.files}
        made["mix"] = [asdict(portion) for portion in self.portions]
        return made | {side: asdict(getattr(self, side)) for side in SIDES}

    def report(self, refused: Path, progress: Progress) -> None:
        """Report what became of the rows; `refused` is the file with those left out."""
        train, validation, test = self.train, self.validation, self.test
        sides = (train, validation, test)
        if not self.decided:  # a guess was reported when it was made
            progress.note(self.format_why)
        progress.note(f"format {self.format.name}, task {self.task.name}, template: {self.template_source}")
        counted = f"{train.kept:,} rows to train on ({train.tokens:,} tokens, {train.learned:,} learned)"
        counted = "rows to train on are read while training" if self.stream else counted
        progress.note(f"{counted}; {validation.kept:,} rows are held out ({validation.source or 'none'})")
        for file in self.files:
            if file["encoding"] not in ("utf-8", HUB) and not file["encoding"].endswith(BY_FORMAT):
                progress.note(f"{file['file']} is read as {file['encoding']}")
        if test.kept:
            progress.note(f"{test.kept:,} test rows for the end ({test.source})")
        for portion in self.portions:
            progress.note(f"{portion.source}: {portion.rows} rows of an epoch, by weight {portion.weight:g}")
        if self.refusals:
            counts = {key: sum(getattr(side, key) for side in sides) for key in ("refused", "duplicates")}
            counts["in the validation rows too"] = train.leaks
            reasons = ", ".join(f"{count} {why}" for why, count in counts.items() if count)
            progress.warn(f"{len(self.refusals)} rows were left out ({reasons}); each with its reason in {refused}")
        leaks = validation.in_training + test.in_training
        if leaks and not train.leaks:
            fix = "data.on_leak=drop takes them out of the training rows"
            progress.warn(f"{leaks} held-out rows are training rows too, which inflates the score; {fix}")
        if cut := sum(side.cut for side in sides):
            progress.warn(f"{cut} rows were cut to fit train.max_length, by data.on_long_row")
        if not self.validation_rows:
            progress.warn("no row is held out, so nothing will show whether training helps")
