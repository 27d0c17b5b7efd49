"""Rows from local files and hub ids: every row comes with its place, and none is dropped unseen."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.errors import DataError, MissingExtra, did_you_mean

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
TEXT_ROW = "text"  # the column that a line of plain text becomes


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in the file. `problem` says why it is no row at all; then `values` holds its raw text."""

    where: str
    values: Mapping[str, Any]
    problem: str = ""


def read_rows(
    path: str, *, split: str = "", subset: str = "", hub: Literal["huggingface", "modelscope"]
) -> Iterator[RawRow]:
    """Rows of a file, of one split of a folder, of an embedded data set (`builtin:reviews`), or of a hub id."""
    if path.startswith("builtin:"):
        yield from read_file(builtin_file(path.removeprefix("builtin:"), split or "train"))
    elif Path(path).is_dir():
        yield from read_file(split_file(Path(path), split or "train"))
    elif Path(path).exists():
        yield from read_file(Path(path))
    elif looks_like_file(path):
        raise missing(path)
    else:
        yield from _read_hub(path, split or "train", subset, hub)


def looks_like_file(path: str) -> bool:
    """Not a hub id: it has a data suffix, or is absolute or dotted, or has more than one slash."""
    return path.endswith(SUFFIXES) or path.startswith((".", "/", "~")) or path.count("/") > 1


def missing(path: str) -> DataError:
    """The error for a file that is not there, naming the nearest that is."""
    parent = Path(path).parent
    if not parent.is_dir():
        return DataError(f"{path}: no such file, and no folder {parent} either", mend="check the path for data.path")
    names = [entry.name for entry in parent.iterdir()]
    return DataError(f"{path}: no such file{did_you_mean(Path(path).name, names)}", mend="check the path for data.path")


def builtin_file(name: str, split: str) -> Path:
    """File of an embedded data set."""
    from luthier.builtin import DATA, data_names

    if name not in data_names():
        raise DataError(
            f"no embedded data set is named {name!r}{did_you_mean(name, data_names())}; "
            f"there are {', '.join(data_names())}"
        )
    return split_file(DATA / name, split)


def split_file(folder: Path, split: str) -> Path:
    """`folder/<split>.<suffix>`."""
    found = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").is_file()]
    if not found:
        there = sorted(entry.name for entry in folder.iterdir() if entry.suffix in SUFFIXES)
        raise DataError(
            f"{folder}: no file for the split {split!r}{did_you_mean(split, [Path(name).stem for name in there])}; "
            f"the folder has {', '.join(there) or 'no data file'}",
            mend="name a file, or a split with data.split=NAME",
        )
    return found[0]


def validation_split(path: str, hub: str) -> str:
    """Name of the validation split that a folder, an embedded or a hub data set brings, or ''."""
    if path.startswith("builtin:"):
        return "heldout"
    if Path(path).is_dir():
        there = {entry.stem for entry in Path(path).iterdir() if entry.suffix in SUFFIXES}
    elif Path(path).exists() or hub != "huggingface":
        return ""
    else:
        import datasets

        there = set(datasets.get_dataset_split_names(path))
    return next((name for name in ("validation", "valid", "val", "dev") if name in there), "")


def read_file(file: Path) -> Iterator[RawRow]:
    """Rows of one local file by its suffix; a json file may hold an array or lines, whatever it is called."""
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty", mend="give a file with at least one row")
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        yield from _read_parquet(file)
    elif suffix in (".csv", ".tsv"):
        yield from _read_table(file, decode(file), tab=suffix == ".tsv")
    elif suffix in (".jsonl", ".json", ".ndjson"):
        yield from _read_json(file, decode(file))
    elif suffix in (".txt", ".md", ""):
        yield from _read_text(file, decode(file))
    else:
        raise DataError(f"{file}: unknown kind of file {suffix!r}", mend=f"known are {', '.join(SUFFIXES)}")


def decode(file: Path) -> str:
    """Text of a file in UTF-8 (with or without mark), UTF-16 with mark, or GB18030."""
    raw = file.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16")
    if raw[:4] == b"PK\x03\x04":
        raise DataError(f"{file}: this is a zip or Excel file", mend="export it as csv or jsonl")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        try:
            return raw.decode("gb18030")
        except UnicodeDecodeError:
            line = raw[: error.start].count(b"\n") + 1
            raise DataError(
                f"{file}: line {line} is neither UTF-8 nor GB18030", mend="convert the file to UTF-8"
            ) from None


def _reject_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=_reject_constant)


def _read_json(file: Path, text: str) -> Iterator[RawRow]:
    if text.lstrip().startswith("["):
        try:
            array = _parse(text)
        except ValueError as error:
            raise DataError(f"{file}: no valid JSON array: {error}", mend="mend the file at that place") from None
        if not array:
            raise DataError(f"{file}: the file has no rows", mend="give a file with at least one row")
        for number, row in enumerate(array, 1):
            yield _row(f"{file}: row {number}", row)
        return
    if file.suffix == ".json" and text.count("\n{") == 0:
        try:  # one pretty-printed object is a mistake that deserves its own words
            whole = _parse(text)
        except ValueError:
            whole = None
        if isinstance(whole, dict) and text.strip().count("\n") > 0:
            raise DataError(
                f"{file}: holds one object, not rows (its keys: {', '.join(list(whole)[:8])})",
                mend="rows are a JSON array [...] or one object per line",
            )
    empty = True
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        empty = False
        try:
            yield _row(f"{file}: line {number}", _parse(line))
        except ValueError as error:
            yield RawRow(f"{file}: line {number}", {"raw": line}, problem=f"no valid JSON: {error}")
    if empty:
        raise DataError(f"{file}: the file has no rows", mend="give a file with at least one row")


def _row(where: str, value: Any) -> RawRow:
    if isinstance(value, dict):
        return RawRow(where, value)
    return RawRow(where, {"raw": value}, problem=f"should be an object with columns, not {type(value).__name__}")


def _read_table(file: Path, text: str, *, tab: bool) -> Iterator[RawRow]:
    header = text.split("\n", 1)[0]
    delimiter = "\t" if tab else max(",;\t|", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader)]
    except StopIteration:
        raise DataError(f"{file}: the file has no header line") from None
    if len(set(names)) != len(names):
        raise DataError(f"{file}: line 1: two columns have the same name", mend="name each column once")
    count = 0
    while True:
        start = reader.line_num + 1  # a quoted text may run over several lines
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise DataError(f"{file}: line {reader.line_num}: {error}", mend="check the quotes of that line") from None
        if not cells:
            continue
        count += 1
        if len(cells) != len(names):
            problem = (
                f"has {len(cells)} cells, the header {len(names)}: a {delimiter!r} in a text needs quotes around it"
            )
            yield RawRow(f"{file}: line {start}", {"raw": cells}, problem=problem)
        else:
            yield RawRow(f"{file}: line {start}", dict(zip(names, cells, strict=True)))
    if count == 0:
        raise DataError(f"{file}: the file has a header and no rows", mend="give a file with at least one row")


def _read_text(file: Path, text: str) -> Iterator[RawRow]:
    """Plain text: blank lines part the documents; a text without any is one document."""
    line = 1
    found = False
    for block in text.replace("\r\n", "\n").split("\n\n"):
        if block.strip():
            found = True
            yield RawRow(f"{file}: line {line}", {TEXT_ROW: block.strip("\n")})
        line += block.count("\n") + 2
    if not found:
        raise DataError(f"{file}: the file has no text", mend="give a file with at least one line")


def _read_parquet(file: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{file}: no valid parquet file: {error}") from None
    if table.metadata.num_rows == 0:
        raise DataError(f"{file}: the file has no rows", mend="give a file with at least one row")
    number = 0
    for batch in table.iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield RawRow(f"{file}: row {number}", row)


def _read_hub(path: str, split: str, subset: str, hub: str) -> Iterator[RawRow]:
    if hub == "modelscope":
        try:
            from modelscope import MsDataset  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise MissingExtra(
                f"data set {path}: ModelScope's package is not installed", mend="pip install 'luthier[modelscope]'"
            ) from None
        rows: Any = MsDataset.load(path, subset_name=subset or "default", split=split)
    else:
        rows = _load_huggingface(path, split, subset)
    for number, row in enumerate(rows, 1):
        yield RawRow(f"{path} ({split}): row {number}", row)


def _load_huggingface(path: str, split: str, subset: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, subset or None, split=split)
    except Exception as error:  # the library raises many kinds, from its own to its transport's
        first = str(error).strip().split("\n")[0]
        raise DataError(
            f"data set {path!r} (split {split!r}) is no local file and could not be loaded from the hub: "
            f"{type(error).__name__}: {first}",
            mend="check the name and the network, or give a local file",
        ) from error
