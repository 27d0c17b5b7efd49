"""A cache of what was read and tokenized, named by the content it was made from.

An entry is a folder `<kind>-<key>`; the key is a hash of everything that decides what is in it. It holds no code and
no pickle. The least recently used entries are deleted when all of them are larger than LIMIT.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from array import array
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from luthier import data, rendering, tasks
from luthier.core.errors import InputError
from luthier.core.files import cache_root
from luthier.core.strict_json import to_json
from luthier.data.store import DataFolder

LIMIT = 20 * 2**30
"""Bytes that all entries may take."""
SMALLEST = 2**22
"""Bytes of data files below which reading them again takes no more than a second or two."""
LAYOUT = 1
"""Version of the layout of an entry; another number makes older ones unreadable."""
META = "entry.json"


def key(kind: str, decides: Mapping[str, Any]) -> str:
    """Name of the entry that these values decide."""
    text = json.dumps([LAYOUT, code(), decides], sort_keys=True, ensure_ascii=True, default=str)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


@lru_cache(maxsize=1)
def code() -> str:
    """A hash of the code that makes rows: our own, and the versions of plugins of other packages."""
    whole = hashlib.sha256()
    for package in (data, rendering, tasks):
        for file in sorted(Path(package.__path__[0]).rglob("*")):
            whole.update(file.read_bytes() if file.suffix in (".py", ".yaml") else b"")
    for group in (f"{data.__name__}.formats", f"{data.__name__}.file_types", tasks.__name__):
        for entry in entry_points(group=group):
            whole.update(f"{entry.value} {entry.dist.version if entry.dist else ''}".encode())
    return whole.hexdigest()


def find(name: str) -> "tuple[DataFolder, dict[str, Any], dict[str, array[int]]] | None":
    """The folder, the values and the arrays of an entry; None where there is none, or it is not whole."""
    folder = cache_root() / name
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if any((folder / file).stat().st_size != size for file, size in meta["files"].items()):
            raise ValueError("a file has another size")
        codes = meta["arrays"].items()
        arrays = {each: array(code, (folder / f"{each}.bin").read_bytes()) for each, code in codes}
        os.utime(folder)  # it was used
    except (OSError, ValueError, KeyError):
        return None
    return DataFolder(existing=folder), meta["values"], arrays


def begin() -> DataFolder:
    """A folder to build an entry in; in the system's temporary folder where the cache may not be written."""
    with contextlib.suppress(OSError):
        cache_root().mkdir(parents=True, exist_ok=True)
        return DataFolder(cache_root())
    return DataFolder()


def keep(name: str, folder: DataFolder, values: Mapping[str, Any], arrays: "Mapping[str, array[int]]") -> None:
    """Make the folder the entry `name`. Where that fails there is no entry, and nothing else is lost."""
    if folder.path.parent != cache_root():
        return
    with contextlib.suppress(OSError):  # a full disk, or the same entry made by another process meanwhile
        for each, numbers in arrays.items():
            (folder.path / f"{each}.bin").write_bytes(numbers.tobytes())
        files = {file.name: file.stat().st_size for file in folder.path.iterdir()}
        codes = {each: numbers.typecode for each, numbers in arrays.items()}
        meta = {"values": values, "arrays": codes, "files": files, "made": time.time()}
        (folder.path / META).write_text(to_json(meta, ensure_ascii=False), encoding="utf-8")
        if find(name) is None:
            shutil.rmtree(cache_root() / name, ignore_errors=True)
            folder.keep(cache_root() / name)
        trim()


def forget(name: str) -> None:
    """Delete one entry, where it is there."""
    shutil.rmtree(cache_root() / name, ignore_errors=True)


def entries() -> list[tuple[Path, int, float]]:
    """Folder, bytes and time of last use of each entry, the last used first."""
    found = []
    with contextlib.suppress(OSError):
        for folder in cache_root().iterdir():
            # Beside rows that were tokenized there are bases that were downloaded or unpacked, rows that were given to
            # the Python API, and copies of runs at a URL, unless something was exported there.
            others = ("fetched-", "gguf-", "rows-", "remote-")
            known = folder.name.startswith(others) and not any(folder.glob("*/exports"))
            if folder.is_dir() and ((folder / META).is_file() or known):
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                found.append((folder, size, folder.stat().st_mtime))
    return sorted(found, key=lambda entry: -entry[2])


def trim(limit: int = LIMIT) -> int:
    """Delete the entries that were used longest ago until all are at most `limit` bytes; returns the bytes freed."""
    total = freed = 0
    for folder, size, _ in entries():
        total += size
        if total > limit:
            shutil.rmtree(folder, ignore_errors=True)
            freed += size
    with contextlib.suppress(OSError):
        left = [folder for kind in ("luthier-data-*", ".staging-*") for folder in cache_root().glob(kind)]
        for folder in left:  # by processes that were killed
            if time.time() - folder.stat().st_mtime > 86_400:
                shutil.rmtree(folder, ignore_errors=True)
    return freed


def clear() -> int:
    """Delete every entry; returns the bytes freed. Runs that are reading one at the time may fail."""
    there = cache_root()
    if there.exists() and not there.is_dir():
        raise InputError(f"{there} is not a folder", fix="set LUTHIER_CACHE to the folder of the cache")
    return trim(0)
