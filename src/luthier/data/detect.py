"""Which format the rows of a set have, and which task follows from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from luthier.data.formats.base import FORMATS, Format
from luthier.data.read import RawRow, read_rows
from luthier.data.settings import DataConfig
from luthier.errors import DataError, InputError
from luthier.tasks.base import TASKS, Task

DETECTION_ROWS = 50


def open_set(config: DataConfig) -> tuple[Iterator[RawRow], Format, str]:
    """The rows of one set, and its format with the reason for it."""
    raw = read_rows(config.path, split=config.split, subset=config.subset, hub=config.hub, streaming=config.streaming)
    first = _first(raw)
    if not first:
        raise DataError(f"{config.path}: there are no rows", mend="give data with at least one row")
    return itertools.chain(first, raw), *_format(config, first)


def _first(raw: Iterator[RawRow]) -> list[RawRow]:
    """As many rows as it takes to have enough to tell the format from; the others stay unread."""
    rows: list[RawRow] = []
    good = 0
    while good < DETECTION_ROWS and (row := next(raw, None)) is not None:
        rows.append(row)
        good += not row.problem
    return rows


def _format(config: DataConfig, raw: Sequence[RawRow]) -> tuple[Format, str]:
    """The format of the recipe, or the most particular one whose columns the first rows have."""
    if config.format is not None:
        return config.format, "given in the recipe"
    sample = [row for row in raw if not row.problem]
    if not sample:
        raise DataError(f"{raw[0].where}: {raw[0].problem}", mend="mend the row; no row of this data can be read")
    known = sorted((FORMATS.get(name)() for name in FORMATS.names()), key=lambda reader: reader.order)
    for reader in known:
        hits = sum(reader.matches(row.values) for row in sample)
        if hits > len(sample) / 2:
            columns = ", ".join(map(str, sample[0].values))
            return reader, f"{hits} of the first {len(sample)} rows have its columns ({columns})"
    columns = ", ".join(map(str, sample[0].values))
    raise DataError(
        f"{sample[0].where}: the columns fit no known format: {columns}",
        mend=f"name the format and its columns, for example data.format.name=alpaca data.format.instruction="
        f"{next(iter(sample[0].values), 'COLUMN')} data.format.output=COLUMN; formats: {', '.join(FORMATS.names())}",
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
