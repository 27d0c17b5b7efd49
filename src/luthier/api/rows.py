"""Rows in memory (dicts, a datasets.Dataset, a DataFrame) become a file that a run can be resumed from."""

import hashlib
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from luthier.core.errors import DataError
from luthier.core.files import cache_root, put, staging_of
from luthier.core.strict_json import to_json

Rows: TypeAlias = Any
"""A file, folder or hub id, a list of dicts, a datasets.Dataset or a pandas DataFrame."""
SIDES = {"train": "path", "validation": "validation", "test": "test"}
"""Split of a datasets.DatasetDict -> key of a recipe's data block."""


def data_settings(data: Any) -> Any:
    """The data block of a recipe, with a path in place of each set of rows in memory; text and paths stay.

    DataError where a row is no mapping, or holds what JSON has no word for: its number and its column are named.
    """
    if _is(data, "datasets", "DatasetDict", "IterableDatasetDict"):
        if unknown := sorted(set(data) - set(SIDES)):
            fix = f"data={{'path': dataset[{unknown[0]!r}], 'validation': ...}}"
            raise DataError(f"data: a split is called {unknown[0]!r}; known are {', '.join(SIDES)}", fix=fix)
        data = {SIDES[split]: rows for split, rows in data.items()}
    if isinstance(data, Mapping):
        keys = ("path", "validation", "test")
        return {key: _place(value, f"data.{key}") if key in keys else value for key, value in data.items()}
    return _place(data, "data")


def _place(value: Any, key: str) -> Any:
    """The file of rows in memory; whatever else it is stays as it is."""
    if value is None or isinstance(value, str | float | int | os.PathLike | Mapping):
        return value
    if not isinstance(value, Iterable):
        what = f"{key} is a {type(value).__name__}, which holds no rows"
        raise DataError(what, fix="give a path, a list of dicts, a datasets.Dataset or a DataFrame")
    return str(rows_file(value, key))


def rows_file(rows: Any, key: str = "data") -> Path:
    """Write rows to the cache, in JSON Lines, under a name made from their content; returns the file."""
    root, whole = cache_root(), hashlib.sha256()
    root.mkdir(parents=True, exist_ok=True)
    staging = root / f".rows-{os.getpid()}-{threading.get_ident()}.staging"
    try:
        count = 0
        with staging.open("wb") as file:
            for count, row in enumerate(_mappings(rows), 1):
                line = to_json(_checked_row(row, f"{key}: row {count}"), ensure_ascii=False).encode() + b"\n"
                whole.update(line)
                file.write(line)
        if not count:
            raise DataError(f"{key} holds no rows", fix="give at least one row")
        name = f"rows-{whole.hexdigest()[:16]}"
        target = root / name / f"{name}.jsonl"
        target.parent.mkdir(exist_ok=True)
        staging.replace(staging_of(target))
        put(target)
        return target
    finally:
        staging.unlink(missing_ok=True)


def _is(value: Any, package: str, *names: str) -> bool:
    """Is it of one of these classes of a package? Imports nothing: who has such an object has imported it."""
    classes = type(value).__mro__
    return any(each.__name__ in names and each.__module__.partition(".")[0] == package for each in classes)


def _mappings(rows: Any) -> Iterator[Any]:
    if _is(rows, "pandas", "DataFrame"):
        if not rows.columns.is_unique:
            twice = rows.columns[rows.columns.duplicated()][0]
            raise DataError(f"the DataFrame has two columns called {twice!r}", fix="rename one of them")
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")  # NaN is pandas' missing value
    yield from rows


def _checked_row(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        what = f"{where} is a {type(row).__name__}, not a dict of columns"
        raise DataError(what, fix="each row is a dict such as {'text': ..., 'label': ...}")
    made = {}
    for column, value in row.items():
        if not isinstance(column, str):
            raise DataError(f"{where}: the column name {column!r} is not text", fix="rename the column")
        try:
            made[column] = _plain(value)
        except (TypeError, ValueError, RecursionError) as error:
            why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
            raise DataError(f"{where}, column {column!r}: {why}", fix="convert it to text or numbers") from None
    return made


def _plain(value: Any) -> Any:
    """What JSON holds of a value, NumPy's numbers and arrays included. TypeError or ValueError says what it is not."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("half a character (a lone surrogate) is no text") from None
        return str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number in JSON; None stands for a missing value")
        return float(value)
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"the key {odd[0]!r} is not text")
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if _is(value, "numpy", "generic", "ndarray"):
        return _plain(value.tolist())
    raise TypeError(f"a {type(value).__name__} is no text, number, list or dict")
