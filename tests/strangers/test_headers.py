"""Strangers' files: columns are understood from names and content, or asked about, and no password is echoed."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from luthier.config import DataConfig
from luthier.data.formats.base import FORMATS
from luthier.data.prepare import load
from luthier.errors import DataError
from luthier.tasks.base import TASKS
from tests.strangers.headers import HEADERLESS, Table, tables


def write(table: Table, folder: Path) -> Path:
    """The file of a table, as it is published."""
    kind = table.kind.removesuffix("-")
    file = folder / f"{table.name}.{kind}"
    if kind == "json":
        file.write_text(json.dumps(table.rows, ensure_ascii=False), encoding="utf-8")
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.rows), encoding="utf-8")
    else:
        with file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, delimiter="\t" if kind == "tsv" else ",")
            if kind == table.kind:
                writer.writerow([name if not name.startswith("\0") else "" for name in table.rows[0]])
            writer.writerows([list(row.values()) for row in table.rows])
    return file


def outcome(table: Table, folder: Path) -> tuple[str, str]:
    """`right`, `asked` where no question was needed, or `wrong`; and what was read or said."""
    file = write(table, folder)
    config = DataConfig(path=str(file), validation="none", cache=False, on_bad_row="skip", workers=1)
    try:
        data = load(config, None)
    except DataError as error:
        said = str(error)
        what = (
            HEADERLESS
            if "data.columns=" in said
            else "unsure"
            if "the columns" in said or "no column" in said
            else said
        )
        return ("right" if what in table.readings else "asked" if what == "unsure" else "wrong"), said
    told = f"{data.task.name}/{data.format.name} {data.format_why}"
    for reading in table.readings:
        if reading in ("unsure", HEADERLESS):
            continue
        head, _, columns = reading.partition(" ")
        task, _, name = head.rpartition("/")
        fields = dict(pair.split("=", 1) for pair in columns.split("; "))
        form = FORMATS.parse({"name": name, **fields})
        meant = load(config.model_copy(update={"format": form}), TASKS.parse(task) if task else None)
        if meant.task.name == data.task.name and [*meant.examples] == [*data.examples]:
            return "right", told
    return "wrong", told
