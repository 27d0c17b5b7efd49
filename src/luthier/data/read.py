"""Rows from local files and hub ids: every row comes with its place, and none is dropped silently."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Literal

from luthier.core.errors import DataError, LuthierError, MissingExtra, did_you_mean, install
from luthier.data.file_types.base import FILE_TYPES, FileType, RawRow
from luthier.data.reading.files import encoding_of, kind_of, refusal, watched

COMPRESSED = (".gz", ".zst")
SHARD = re.compile(r"(?P<split>.+?)[-_.](?:part[-_])?(?P<number>\d+)(?:[-_]of[-_](?P<all>\d+))?(?:-[0-9a-f]{8,})?")
HUB, BY_FORMAT = "a data set of a hub", ": text is UTF-8 by its format"
VALIDATION = ("validation", "valid", "val", "dev")


@cache
def suffixes() -> tuple[str, ...]:
    """Every suffix of a data file, those of compressed text included."""
    plain = [f".{name}" for name in (*FILE_TYPES.names(), *FILE_TYPES.presets)]
    return (*plain, *(suffix + end for suffix in plain if FILE_TYPES.get(suffix[1:]).text for end in COMPRESSED))


def file_type_of(path: str) -> FileType | None:
    """The type of a data file by its suffix, that of its content where it is compressed; None for an unknown one."""
    suffix = _suffix(path)
    name = "txt" if suffix in ("", ".md") else suffix[1:]
    return FILE_TYPES.parse(name) if name in (*FILE_TYPES.names(), *FILE_TYPES.presets) else None


def _suffix(path: str) -> str:
    """The suffix of a file's content, in lower case: .csv of A.csv.gz."""
    file = Path(path.lower())
    return Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix


def read_rows(
    path: str,
    *,
    split: str = "",
    subset: str = "",
    hub: Literal["huggingface", "modelscope"],
    streaming: bool = False,
    columns: Sequence[str] = (),
) -> Iterator[RawRow]:
    """Rows of a file, of one split of a folder, of an embedded data set (`builtin:reviews`), or of a hub id.

    Files are always read row by row; `streaming` does not download a hub's data set first either. `columns` names
    those of a csv or tsv file without a header line.
    """
    split = split or "train"
    files = local_files(path, split)
    if files is None and looks_like_file(path):
        raise missing(path)
    if files is None:
        yield from _read_hub(path, split, subset, hub, streaming)
    for file in files or ():
        yield from read_file(file, columns)


def local_files(path: str, split: str) -> list[Path] | None:
    """The files that `read_rows` reads; None for a hub id, or where nothing is."""
    if path.startswith("builtin:"):
        return builtin_files(path.removeprefix("builtin:"), split or "train")
    kind = kind_of(path)
    return split_files(Path(path), split or "train") if kind == "folder" else [Path(path)] if kind else None


def looks_like_file(path: str) -> bool:
    """Not a hub id: it has a data suffix, or is absolute or dotted, or has more than one slash."""
    return path.endswith(suffixes()) or path.startswith((".", "/", "~")) or path.count("/") > 1


def missing(path: str) -> DataError:
    """The error for a file that is not there, naming the nearest that is."""
    folder, hint = Path(path).parent, f", and no folder {Path(path).parent} either"
    if kind_of(str(folder)) == "folder":
        hint = did_you_mean(Path(path).name, [entry.name for entry in _entries(folder)])
    return DataError(f"{path}: no such file{hint}", fix="check the path for data.path")


def builtin_files(name: str, split: str) -> list[Path]:
    """Files of an embedded data set."""
    from luthier.builtin import DATA, data_names

    names = data_names()
    if name not in names:
        hint = did_you_mean(name, names)
        raise DataError(f"no embedded data set is named {name!r}{hint}; there are {', '.join(names)}")
    return split_files(DATA / name, split)


def _splits(folder: Path) -> list[tuple[Path, str, re.Match[str] | None]]:
    """The data files of a folder, with the stem of each, and its parts where it may be a shard of a split."""
    files = [(file, _stem(file.name)) for file in _entries(folder)]
    return [(file, stem, SHARD.fullmatch(stem)) for file, stem in files if stem and not file.is_dir()]


def _split_names(folder: Path) -> set[str]:
    """The splits that a folder has as files or shards."""
    return {name for _, stem, shard in _splits(folder) for name in (stem, shard and shard["split"]) if name}


def split_files(folder: Path, split: str) -> list[Path]:
    """`<split>.<suffix>`, or its shards in order: `train-00000-of-00003.parquet`, `train_1.jsonl`, and so on."""
    files = _splits(folder)
    whole = [file for file, stem, _ in files if stem == split]
    if len(whole) > 1:
        raise DataError(
            f"{folder}: the split {split!r} is there {len(whole)} times: {', '.join(file.name for file in whole)}",
            fix="name one file as the data",
        )
    shards = [(int(x["number"]), int(x["all"] or 0), file) for file, _, x in files if x and x["split"] == split]
    if not whole and not shards:
        there = ", ".join(file.name for file, _, _ in files) or "no data file"
        hint = did_you_mean(split, [stem for _, stem, _ in files])
        raise DataError(
            f"{folder}: this is a folder with no file for the split {split!r}{hint}; the folder has {there}",
            fix="name a file, or a split with data.split=NAME",
        )
    return whole or _in_order(folder, split, shards)


def has_split(folder: Path, split: str) -> bool:
    """Does the folder have a file or shards of the split?"""
    return split in _split_names(folder)


def _in_order(folder: Path, split: str, shards: list[tuple[int, int, Path]]) -> list[Path]:
    """Shards by their number; a missing or repeated number would silently lose or repeat rows."""
    shards.sort(key=lambda shard: shard[0])
    numbers = [number for number, _, _ in shards]
    twice = next((number for number in numbers if numbers.count(number) > 1), None)
    if twice is not None:
        names = ", ".join(file.name for number, _, file in shards if number == twice)
        raise DataError(f"{folder}: shard {twice} of {split!r} is there twice: {names}", fix="remove one of them")
    count = max(all_of for _, all_of, _ in shards)
    if count and numbers not in (list(range(count)), list(range(1, count + 1))):
        shown = ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")
        why = f"{len(shards)} of the {count} shards of {split!r} are there: numbers {shown}"
        raise DataError(f"{folder}: {why}", fix="fetch the others")
    return [file for _, _, file in shards]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise refusal(folder, error) from None


def _stem(name: str) -> str:
    """The name of a data file without its suffix, or '' for other files."""
    suffix = max((suffix for suffix in suffixes() if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(suffix)] if suffix else ""


def validation_split(path: str, hub: str, subset: str = "") -> str:
    """Name of the validation split of a folder, an embedded or a hub data set, or ''."""
    if path.startswith("builtin:"):
        return "heldout"
    kind = kind_of(path)
    if kind == "folder":
        there = _split_names(Path(path))
    elif kind == "file" or hub != "huggingface":
        return ""
    else:
        import datasets

        try:
            there = set(datasets.get_dataset_split_names(path, subset or None))
        except Exception as error:  # as when rows are loaded: it raises many kinds
            raise _hub_error(path, "", error, fix="set data.validation=NAME, none, or a share such as 0.1") from error
    return next((name for name in VALIDATION if name in there), "")


def read_file(file: Path, columns: Sequence[str] = ()) -> Iterator[RawRow]:
    """Rows of one local file by its suffix; a json file may hold an array or lines, whatever it is called."""
    with watched(file):
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty", fix="give a file with at least one row")
        kind = file_type_of(file.name)
        if kind is None:
            known = ", ".join(suffix for suffix in suffixes() if not suffix.endswith(COMPRESSED))
            fix = f"known are {known}; text files also with {' or '.join(COMPRESSED)} at the end"
            raise DataError(f"{file}: unknown kind of file {_suffix(file.name)!r}", fix=fix)
        if file.suffix.lower() in COMPRESSED and not kind.text:
            raise DataError(
                f"{file}: a {_suffix(file.name)} file is compressed inside, not as a whole", fix="decompress it"
            )
        empty = True
        for row in kind.rows(file, columns):
            empty = False
            yield row
        if empty:
            raise DataError(f"{file}: the file has no rows", fix="give a file with at least one row")


def encodings(files: Iterable[str]) -> list[dict[str, str]]:
    """Each file that rows come from, with the encoding of its text."""
    return [{"file": name, "encoding": _encoding(Path(name))} for name in dict.fromkeys(files)]


def _encoding(file: Path) -> str:
    if not file.is_file():
        return HUB
    kind = file_type_of(file.name)
    return encoding_of(file) if kind is None or kind.text else f"{file.suffix.lower()[1:]}{BY_FORMAT}"


def _read_hub(path: str, split: str, subset: str, hub: str, streaming: bool) -> Iterator[RawRow]:
    if hub == "modelscope":
        try:
            from modelscope import MsDataset  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            why = f"data set {path}: ModelScope's package is not installed"
            raise MissingExtra(why, fix=install("modelscope")) from None
        options = {"subset_name": subset or "default", "split": split, "use_streaming": streaming}
        load = partial(MsDataset.load, path, **options)
    else:
        import datasets

        load = partial(datasets.load_dataset, path, subset or None, split=split, streaming=streaming)
    try:
        rows = load()
    except Exception as error:  # the libraries raise many kinds, from their own to their transport's
        raise _hub_error(path, split, error) from error
    for number, row in enumerate(rows, 1):
        where = f"{path} ({split}): row {number}"
        if isinstance(row, Mapping):
            yield RawRow(where, row)
        else:
            yield RawRow(where, {"raw": row}, f"should be an object with columns, not {type(row).__name__}")


def _hub_error(path: str, split: str, error: Exception, fix: str = "") -> LuthierError:
    first = str(error).strip().split("\n")[0]
    where = f"data set {path!r}" + (f" (split {split!r})" if split else "")
    why = f"{where} is not a local file and could not be loaded from the hub: {type(error).__name__}: {first}"
    return DataError(why, fix=fix or "check the name and the network, or give a local file")
