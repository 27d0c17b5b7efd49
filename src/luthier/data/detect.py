"""Which format the rows of a set have, and which task follows from it."""

import itertools
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from luthier.core.errors import DataError
from luthier.core.events import Progress
from luthier.core.shell import command_with
from luthier.data.file_types.base import RawRow
from luthier.data.formats.base import FORMATS, Format
from luthier.data.guess import Column, guess
from luthier.data.read import file_type_of, read_rows
from luthier.data.settings import DataConfig
from luthier.tasks.base import TASKS, Task

DETECTION_ROWS = 50


class Opened(NamedTuple):
    """The rows of one set, and how they are read."""

    rows: Iterator[RawRow]
    format: Format
    why: str
    task: Task | None = None
    """The task of the content, where it is not the default of the format."""
    guessed: bool = False
    """Was the format found by names and content, or chosen by the user? Then a run keeps it in its recipe."""


def open_set(config: DataConfig, progress: Progress, *, mixed: bool = False) -> Opened:
    """The rows of one set, and its format with the reason for it. `mixed`: the set is one of data.mix."""
    raw = read_rows(config, streaming=config.streaming)
    first: list[RawRow] = []
    good = 0
    while good < DETECTION_ROWS and (row := next(raw, None)) is not None:
        first.append(row)
        good += not row.problem
    if not first:
        raise DataError(f"{config.path}: there are no rows", fix="give data with at least one row")
    rows = itertools.chain(first, raw)
    if config.format is not None:
        return Opened(rows, config.format, "given in the recipe")
    sample = [row for row in first if not row.problem]
    if not sample:
        raise DataError(f"{first[0].where}: {first[0].problem}", fix="fix the row; no row of this data can be read")
    for reader in sorted((FORMATS.get(name)() for name in FORMATS.names()), key=lambda reader: reader.order):
        hits = sum(reader.matches(row.values) for row in sample)
        if hits > len(sample) / 2 and reader.certain(sample[0].values):
            columns = ", ".join(map(str, sample[0].values))
            return Opened(rows, reader, f"{hits} of the first {len(sample)} rows have its columns ({columns})")
    return _guessed(rows, config, sample, progress, mixed)


def _guessed(
    rows: Iterator[RawRow], config: DataConfig, sample: Sequence[RawRow], progress: Progress, mixed: bool
) -> Opened:
    """The format by names and content of the columns; a question to the user where they leave a doubt."""
    names = list(dict.fromkeys(str(name) for row in sample for name in row.values))
    kind = file_type_of(config.path)
    if not config.columns and kind is not None and kind.headless:
        refuse_headerless(sample)
    reading, offered = guess([row.values for row in sample])
    why = "understood from the names and content of the columns"
    if reading is None:
        where, listed = sample[0].where, ", ".join(names)
        if not offered:
            fix = "name the format and its columns with data.format.name=NAME and the keys of luthier explain format "
            fix += "NAME, or bring the rows into one of the formats of luthier list formats"
            raise DataError(f"{where}: no column holds texts that a format could read: {listed}", fix=fix)
        doubt = f"{where}: the columns can be read in more than one way"
        shown = "; ".join(f"{name}: {value!r:.60}" for name, value in sample[0].values.items())
        answer = progress.ask(f"{doubt}. This row has {shown}", list(map(str, offered)))
        if answer is None:  # the error in place of the question: every reading, and a command that takes the first
            ways = (f"\n  {number}. {each}: {shlex.join(each.settings())}" for number, each in enumerate(offered, 1))
            fix = f"choose one; for the first: {command_with(offered[0].settings())}"
            if mixed:
                fix = "choose one, and write it into this set's block of data.mix as format: {name: NAME, KEY: COLUMN}"
            raise DataError(f"{doubt}: {listed}{''.join(ways)}", fix=fix)
        reading, why = offered[answer], "chosen"
    used = {column.partition(".")[0] for column in reading.columns.values()} | set(reading.columns.values())
    ignored = ", ".join(name for name in names if name not in used)
    why = f"{why}: {reading}" + (f"; not read: {ignored}" if ignored else "")
    form = FORMATS.parse({"name": reading.format, **reading.columns})
    return Opened(rows, form, why, TASKS.parse(reading.task) if reading.task else None, guessed=True)


def refuse_headerless(sample: Sequence[RawRow]) -> None:
    """DataError where the names of a table's columns look like one more row of it: the file has no header line."""
    names = [str(name) for name in sample[0].values]
    columns = [Column(name, [row.values for row in sample]) for name in names]
    if not any(column.headless for column in columns):
        return
    made: list[str] = []
    texts = sum(column.long for column in columns)
    for number, column in enumerate(columns, 1):
        text = f"text{sum(name.startswith('text') for name in made) + 1}" if texts > 1 else "text"
        plain = "label" if column.label and "label" not in made else f"column{number}"
        plain = "id" if column.metadata and column.numbers and "id" not in made else plain
        made.append(text if column.long else plain)
    shown = ", ".join(f"{name!r:.40}" for name in names)
    why = f"{sample[0].where.rpartition(':')[0]}: the first line looks like a row and not like the names of columns: "
    fix = "name the columns, and change the names where they are not what you want: "
    raise DataError(why + shown, fix=fix + command_with([f"data.columns=[{','.join(made)}]"]))


def task_for(reader: Format) -> Task:
    """The default task of a format."""
    return TASKS.parse({"text": "complete", "classification": "classify"}.get(reader.name, "chat"))
