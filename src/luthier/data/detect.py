"""Which format the rows of a set have, and which task follows from it."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.data.columns import Reading, Understood, headless, settings, understand
from luthier.data.example import RowError
from luthier.data.formats.base import FORMATS, Format
from luthier.data.read import RawRow, read_rows
from luthier.data.settings import DataConfig
from luthier.data.store import file_of
from luthier.errors import DataError, InputError
from luthier.tasks.base import TASKS, Task
from luthier.training.progress import Progress

DETECTION_ROWS = 50


GUESSED = "understood from names and values: "
"""Begins the reason for a format that nobody named."""
CHOSEN = "chosen by the user: "
GIVEN = "given in the recipe"


class UnclearColumns(DataError):
    """Columns that can be read in more than one way. `settings` choose the likeliest on the command line."""

    def __init__(self, message: str, settings: Sequence[str]) -> None:
        self.settings = list(settings)
        super().__init__(message, mend=" ".join(map(shlex.quote, self.settings)))


def open_set(config: DataConfig, progress: Progress | None = None) -> tuple[Iterator[RawRow], Format, str]:
    """The rows of one set, and its format with the reason for it. Asks the user by `progress` where that is unclear."""
    raw = read_rows(config.path, split=config.split, subset=config.subset, hub=config.hub, streaming=config.streaming)
    first = _first(raw)
    if not first:
        raise DataError(f"{config.path}: there are no rows", mend="give data with at least one row")
    return itertools.chain(first, raw), *_format(config, first, progress or Progress())


def _first(raw: Iterator[RawRow]) -> list[RawRow]:
    """As many rows as it takes to have enough to tell the format from; the others stay unread."""
    rows: list[RawRow] = []
    good = 0
    while good < DETECTION_ROWS and (row := next(raw, None)) is not None:
        rows.append(row)
        good += not row.problem
    return rows


def _format(config: DataConfig, raw: Sequence[RawRow], progress: Progress) -> tuple[Format, str]:
    """The format of the recipe, the most particular one whose columns the first rows have, or what they mean."""
    if config.format is not None:
        return config.format, GIVEN
    sample = [row for row in raw if not row.problem]
    if not sample:
        raise DataError(f"{raw[0].where}: {raw[0].problem}", mend="mend the row; no row of this data can be read")
    why, known = "", sorted((FORMATS.get(name)() for name in FORMATS.names()), key=lambda reader: reader.order)
    columns = ", ".join(map(str, sample[0].values))
    rows = [row.values for row in sample]
    exact = next((reader for reader in known if sum(map(reader.matches, rows)) > len(rows) / 2), None)
    if exact is not None:
        why = f"{sum(map(exact.matches, rows))} of the first {len(rows)} rows have its columns ({columns})"
        if exact.name not in ("classification", "text"):
            return exact, why
    found = understand(rows)  # also beside `label`: a pair of texts, or labels in words
    single = found.readings[0] if len(found.readings) == 1 else None
    if exact is not None and (
        _same(exact, single, rows) if single else exact.name == "classification" or not found.readings
    ):
        return exact, why
    if exact is None and headless(rows) and sample[0].where.endswith(": line 2"):
        raise DataError(
            f"{file_of(sample[0].where)}: the first line looks like a row, not like names of columns: {columns:.200}",
            mend=_with_names(file_of(sample[0].where), len(rows[0])),
        )
    if single is not None:
        unused = f"; not used: {', '.join(single.unused)}" if single.unused else ""
        return single.form, f"{GUESSED}{single.said}{unused}"
    return _ask(found, sample[0].where, columns, progress)


def _ask(found: Understood, where: str, columns: str, progress: Progress) -> tuple[Format, str]:
    """The reading that the user chooses; UnclearColumns where nobody can be asked."""
    if not found.readings:
        raise DataError(
            f"{where}: no column holds texts to learn from: {columns}",
            mend=f"name the format and its columns: data.format.name=NAME data.format.KEY=COLUMN; formats: "
            f"{', '.join(FORMATS.names())}",
        )
    question = f"{file_of(where)}: {found.why}. How are the columns to be read?"
    choice = progress.ask(question, [f"{each.form.name}: {each.said}" for each in found.readings])
    if choice is None:
        others = [" ".join(map(shlex.quote, settings(each.form))) for each in found.readings[1:3]]
        also = f". Another reading: {'; or '.join(others)}" if others else ""
        raise UnclearColumns(
            f"{where}: the columns can be read in more than one way ({columns}): {found.why}{also}",
            settings(found.readings[0].form),
        )
    return found.readings[choice].form, f"{CHOSEN}{found.readings[choice].said}"


def _same(reader: Format, other: Reading, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Do both make the same example of the first row?"""
    try:
        return reader.read(rows[0]) == other.form.read(rows[0])
    except RowError:
        return False


def _with_names(file: str, columns: int) -> str:
    mark = "\\t" if ".tsv" in file else ","
    names = ("text", "label") if columns == 2 else [f"column{number}" for number in range(1, columns + 1)]
    named = Path(file).with_name(f"named-{Path(file).name}")
    return (
        "put a line of names before the rows, with names of yours: "
        f"(printf {shlex.quote(mark.join(names) + chr(92) + 'n')}; cat {shlex.quote(file)}) > {shlex.quote(str(named))}"
    )


def task_for(reader: Format) -> Task:
    """The task that a format is mostly for."""
    return TASKS.parse({"text": "complete", "classification": "classify"}.get(reader.name, "chat"))


def refuse_unlearned(reader: Format, task: Task) -> None:
    """No task learns from every format yet."""
    what, mend = reader.unlearned()
    if what:
        raise InputError(
            f"the rows are {what} (format {reader.name}), which task {task.name} does not learn from, and no other; "
            f"tasks are {', '.join(TASKS.names())}",
            mend=mend,
        )


def refuse_other_task(config: DataConfig, reader: Format, block: DataConfig, other: Format, given: Task | None) -> None:
    """Sets that lead to different tasks are mixed only where the recipe names the task."""
    one, two = task_for(reader).name, task_for(other).name
    if given is None and one != two:
        raise InputError(
            f"data.mix: {config.path} ({reader.name}) is for task {one}, {block.path} ({other.name}) for task {two}",
            mend=f"say the task for all, such as task={one}, or leave one out",
        )
