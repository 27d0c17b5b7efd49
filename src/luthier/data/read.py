"""Rows from local files and hub ids: every row comes with its place, and none is dropped silently."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from luthier.core.errors import (
    DataError,
    LuthierError,
    MissingExtra,
    did_you_mean,
    first_line,
    install,
    require_package,
)
from luthier.data.file_types.base import FILE_TYPES, FileType, RawRow, encoding_of, kind_of, refusal, watched
from luthier.data.settings import DataConfig

COMPRESSED = (".gz", ".zst")
SHARD = re.compile(r"(?P<split>.+?)[-_.](?:part[-_])?(?P<number>\d+)(?:[-_]of[-_](?P<all>\d+))?(?:-[0-9a-f]{8,})?")
HUB, BY_FORMAT = "a data set of a hub", ": text is UTF-8 by its format"
VALIDATION = ("validation", "valid", "val", "dev")


@cache
def suffixes() -> tuple[str, ...]:
    """Every suffix of a data file, those of compressed text included."""
    plain = [f".{name}" for name in FILE_TYPES.all_names()]
    return (*plain, *(suffix + end for suffix in plain if FILE_TYPES.get(suffix[1:]).text for end in COMPRESSED))


def file_type_of(path: str) -> FileType | None:
    """The type of a data file by its suffix, that of its content where it is compressed; None for an unknown one."""
    suffix = _suffix(path)
    name = "txt" if suffix in ("", ".md") else suffix[1:]
    return FILE_TYPES.parse(name) if name in FILE_TYPES.all_names() else None


def _suffix(path: str) -> str:
    """The suffix of a file's content, in lower case: .csv of A.csv.gz."""
    file = Path(path.lower())
    return Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix


def read_rows(config: DataConfig, *, streaming: bool = False) -> Iterator[RawRow]:
    """Rows of a file, a split of a folder, `builtin:reviews` or a hub id, which `streaming` does not download first."""
    files = local_files(config.path, config.split)
    if files is None and looks_like_file(config.path):
        path = Path(config.path)
        hint = f", and no folder {path.parent} either"
        if kind_of(str(path.parent)) == "folder":
            hint = did_you_mean(path.name, [entry.name for entry in _entries(path.parent)])
        raise DataError(f"{config.path}: no such file{hint}", fix="check the path for data.path")
    if files is None:
        yield from _read_hub(config, streaming)
    for file in files or ():
        yield from read_file(file, config.columns)


def local_files(path: str, split: str) -> list[Path] | None:
    """The files that `read_rows` reads; None for a hub id, or where nothing is."""
    if path.startswith("builtin:"):
        from luthier.builtin import DATA, data_names

        name, names = path.removeprefix("builtin:"), data_names()
        if name not in names:
            hint = did_you_mean(name, names)
            raise DataError(f"no embedded data set is named {name!r}{hint}; there are {', '.join(names)}")
        return split_files(DATA / name, split or "train")
    kind = kind_of(path)
    return split_files(Path(path), split or "train") if kind == "folder" else [Path(path)] if kind else None


def looks_like_file(path: str) -> bool:
    """Not a hub id: it has a data suffix, or is absolute or dotted, or has more than one slash."""
    return path.endswith(suffixes()) or path.startswith((".", "/", "~")) or path.count("/") > 1


def _splits(folder: Path) -> list[tuple[Path, str, re.Match[str] | None]]:
    """The data files of a folder, with the stem of each, and its parts where it may be a shard of a split."""
    made = []
    for file in _entries(folder):
        ends = [suffix for suffix in suffixes() if file.name.lower().endswith(suffix)]
        stem = file.name[: -len(max(ends, key=len))] if ends else ""
        if stem and not file.is_dir():
            made.append((file, stem, SHARD.fullmatch(stem)))
    return made


def splits_in(folder: Path) -> set[str]:
    """The splits that a folder has as files or shards."""
    return {name for _, stem, shard in _splits(folder) for name in (stem, shard and shard["split"]) if name}


def split_files(folder: Path, split: str) -> list[Path]:
    """`<split>.<suffix>`, or its shards in order: `train-00000-of-00003.parquet`, `train_1.jsonl`, and so on."""
    files = _splits(folder)
    whole = [file for file, stem, _ in files if stem == split]
    if len(whole) > 1:
        names = ", ".join(file.name for file in whole)
        why = f"{folder}: the split {split!r} is there {len(whole)} times: {names}"
        raise DataError(why, fix="name one file as the data")
    if whole:
        return whole
    shards = [(int(x["number"]), int(x["all"] or 0), file) for file, _, x in files if x and x["split"] == split]
    if not shards:
        there = ", ".join(file.name for file, _, _ in files) or "no data file"
        hint = did_you_mean(split, [stem for _, stem, _ in files])
        why = f"{folder}: this is a folder with no file for the split {split!r}{hint}; the folder has {there}"
        raise DataError(why, fix="name a file, or a split with data.split=NAME")
    # A missing or repeated number would silently lose or repeat rows.
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


def validation_split(path: str, hub: str, subset: str = "") -> str:
    """Name of the validation split of a folder, an embedded or a hub data set, or ''."""
    if path.startswith("builtin:"):
        return "heldout"
    kind = kind_of(path)
    if kind == "folder":
        there = splits_in(Path(path))
    elif kind == "file" or hub != "huggingface":
        return ""
    else:
        require_datasets(path)
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
            why = f"{file}: a {_suffix(file.name)} file is compressed inside, not as a whole"
            raise DataError(why, fix="decompress it")
        count = 0
        for row in kind.rows(file, columns):
            count += 1
            yield row
        if not count:
            raise DataError(f"{file}: the file {kind.empty}", fix="give a file with at least one row")


def encodings(files: Iterable[str]) -> list[dict[str, str]]:
    """Each file that rows come from, with the encoding of its text."""
    made = []
    for name in dict.fromkeys(files):
        file, kind = Path(name), file_type_of(name)
        by_format = "" if kind is None or kind.text else f"{file.suffix.lower()[1:]}{BY_FORMAT}"
        made.append({"file": name, "encoding": (by_format or encoding_of(file)) if file.is_file() else HUB})
    return made


def _read_hub(config: DataConfig, streaming: bool) -> Iterator[RawRow]:
    path, split, subset = config.path, config.split or "train", config.subset
    if config.hub == "modelscope":
        try:
            from modelscope import MsDataset  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            why = f"data set {path}: ModelScope's package is not installed"
            raise MissingExtra(why, fix=install("modelscope")) from None
        options = {"subset_name": subset or "default", "split": split, "use_streaming": streaming}
        load = partial(MsDataset.load, path, **options)
    else:
        require_datasets(path)
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


def require_datasets(path: str) -> None:
    """Raise MissingExtra where Hugging Face's package for data sets on the hub is not installed."""
    why = f"data set {path} is not a local file, and to read it from the hub the package datasets is not installed"
    require_package("datasets", why, fix=f"check the path, or {install('datasets')}")


def _hub_error(path: str, split: str, error: Exception, fix: str = "") -> LuthierError:
    where = f"data set {path!r}" + (f" (split {split!r})" if split else "")
    why = f"is not a local file and could not be loaded from the hub: {type(error).__name__}: {first_line(error)}"
    return DataError(f"{where} {why}", fix=fix or "check the name and the network, or give a local file")
