"""Files that are whole after a kill or a power failure: written aside, synced to the disk, renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from luthier.core.errors import Busy, InputError
from luthier.core.resources import no_access, no_space
from luthier.core.strict_json import to_json


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def staging_of(path: Path) -> Path:
    """Where a file is written before it takes its name."""
    return path.with_name(f".{path.name}.staging")


def put(path: Path) -> None:
    """Let what stands in `staging_of(path)` take its name: a reader sees the old file or the new one, never half."""
    staging = staging_of(path)
    sync(staging)
    staging.replace(path)
    sync(path.parent)


class JsonObject(dict[str, Any]):
    """What stands in a JSON file; a key that is not there is an InputError that names the file."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise InputError(f"{self.path}: the key {key!r} is missing", fix="restore it, or use another folder: run=DIR")


def read_object(path: Path, fix: str = "") -> JsonObject:
    """The JSON object in a file; InputError says what is wrong with it, and `fix` how to fix that."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing", fix=fix) from None
    except PermissionError as error:
        raise no_access(error) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", fix=fix) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}", fix=fix) from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, not a JSON object", fix=fix)
    return JsonObject(path, found)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str, put: Callable[[Path], None] = put) -> None:
    """Replace a file as a whole: a reader never sees half of it. `put` lets it take its name."""
    staging_of(path).write_text(text, encoding="utf-8")
    put(path)


def write_json(path: Path, value: Any, put: Callable[[Path], None] = put) -> None:
    """Replace a JSON file as a whole, as `write_text`; numbers that are not finite become null."""
    write_text(path, to_json(value, ensure_ascii=False, indent=1) + "\n", put)


def write_jsonl(path: Path, rows: Iterable[Any], put: Callable[[Path], None] = put) -> None:
    """Replace a JSON-lines file as a whole, line by line; as `write_json`."""
    with staging_of(path).open("w", encoding="utf-8") as file:
        file.writelines(to_json(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    put(path)


def read_jsonl(path: Path) -> Iterator[Any]:
    """The values of a JSON-lines file. Only a newline ends a line: texts may hold what `str.splitlines` cuts at."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


MANIFEST = "manifest.json"


@contextmanager
def staged(target: Path, run: str = "", step: int | None = None) -> Iterator[Path]:
    """A folder to write into, which becomes `target` as a whole at the end, or leaves no trace.

    Its manifest carries the identity of the `run` and the `step` that it belongs to.
    """
    staging = target.parent / f".staging-{target.name}-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        listing = {
            path.relative_to(staging).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in files
        }
        (staging / MANIFEST).write_text(to_json({"run": run, "step": step, "files": listing}, indent=1))
        mode = (staging / MANIFEST).stat().st_mode & 0o777  # what the umask leaves; safetensors writes 0600
        for path in files:
            path.chmod(mode | path.stat().st_mode & 0o111)
        for path in [*files, staging / MANIFEST, *(path for path in staging.rglob("*") if path.is_dir()), staging]:
            sync(path)
        old = target.with_name(f".old-{target.name}")
        if target.exists():  # the same step again; a kill between the two renames is fixed by `tidy`
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        staging.rename(target)
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if (full := no_space(error, target)) is not None:
            raise full from error
        raise


def lock(folder: Path, busy: Busy, patience: float = 0.0) -> AbstractContextManager[object]:
    """Keep every other process out of a folder; raises `busy` where one holds it for `patience` seconds.

    It is let go where this process dies.
    """
    from filelock import FileLock, Timeout  # it imports asyncio

    try:
        return FileLock(folder / ".lock", timeout=patience).acquire()
    except Timeout:
        raise busy from None


def tidy(folder: Path) -> None:
    """Clear away what killed processes left in `folder`. Only for who holds the run: another's work would go too."""
    for old in folder.glob(".old-*"):
        target = old.with_name(old.name.removeprefix(".old-"))
        if not target.exists() and not fault(old):
            old.rename(target)
    for left in [path for kind in (".staging-*", ".trash-*", ".old-*") for path in folder.glob(kind)]:
        shutil.rmtree(left, ignore_errors=True)


def fault(folder: Path, *, run: str = "", hashes: bool = True, others: bool = False) -> str:
    """What is wrong with a folder that `staged` made; empty where nothing. Without `hashes` only names and sizes.

    A folder of another run than `run` is wrong as well ("": of any), and a checkpoint under the name of another step.
    `others`: files that the manifest does not name may be there. InputError where a file is not damaged but closed to
    this user.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, step = manifest["files"], manifest["step"] if run else manifest.get("step")
        if run and manifest["run"] != run:
            return "it belongs to another run"
        if step is not None and folder.name.removeprefix(".old-") != checkpoint_name(step):
            return f"it is the checkpoint of step {step}"
        return _fault_of_files(folder, files, hashes, others) if files else f"{MANIFEST} names no file"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except PermissionError as error:
        raise no_access(error, folder) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"


def _fault_of_files(folder: Path, files: dict[str, Any], hashes: bool, others: bool) -> str:
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    for name in sorted(set(files) - there if others else there ^ set(files)):
        return f"{name} is missing" if name in files else f"{name} is not in its manifest"
    for name, entry in files.items():
        if (folder / name).stat().st_size != entry["bytes"]:
            return f"{name} has another size than in its manifest"
        if hashes and sha256(folder / name) != entry["sha256"]:
            return f"{name} has another SHA-256 than in its manifest"
    return ""


def checkpoint_name(step: int) -> str:
    """Name of the checkpoint of a step."""
    return f"step-{step:06d}"


def cache_root() -> Path:
    """The folder of all that is made once and used again: $LUTHIER_CACHE, or luthier in the user's cache folder."""
    if own := os.environ.get("LUTHIER_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "luthier"
