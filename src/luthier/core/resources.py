"""Errors of the machine that libraries hide: full disk, exhausted memory, closed files; and what to do about each."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from luthier.core.errors import InputError, NoSpace, OutOfMemory
from luthier.core.shell import shell_line

FULL = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded", errno.EFBIG: "File too large"}
"""How the system says that a file cannot grow, by number and in words, which is all that safetensors passes on."""
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
LITTLE = 2**26
"""Free bytes of a file system above which it is not called full."""
WHOLE, RERUN = "what was saved before is whole", "then rerun the same command to resume from the last checkpoint"
NO_MEMORY = re.compile(
    "CUDA (error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED|MPS backend out of memory|std::bad_alloc|"
    "DefaultCPUAllocator: (can't allocate|not enough) memory"
)
"""How torch and the libraries below it say that memory ran out, where they raise no OutOfMemoryError."""


def is_out_of_memory(error: BaseException) -> bool:
    """True where the error says that the memory of the machine or of its GPU ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))


def explained(error: BaseException, place: Path | None = None) -> InputError | None:
    """The same error with what to do about it, where the machine is at fault; None where it is not.

    `place` is where the work that failed writes to.
    """
    if isinstance(error, InputError):
        return None
    if (full := no_space(error, place)) is not None:
        return full
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error.strerror):  # all are full or closed
        return NoSpace(f"{error.strerror}", fix="TMPDIR=FOLDER_WITH_SPACE before the same command")
    if is_out_of_memory(error):
        lines = str(error).strip().splitlines() or [type(error).__name__]
        smaller = "evaluate.batch_size=1 if in an evaluation; else a smaller base, or one in 4 bit (method=qlora)"
        return OutOfMemory(f"memory ran out: {lines[0]}", fix=smaller)
    return no_access(error) if isinstance(error, OSError) and error.errno in CLOSED else None


def no_space(error: BaseException, place: Path | None = None) -> NoSpace | None:
    """What is full, by how much, and what helps; None unless the error, or one that caused it, says that it is full."""
    cause = next((each for each in _causes(error) if _full(each)), None)
    if cause is None:
        return None
    name, kind = getattr(cause, "filename", None), _full(cause)
    if kind == errno.EFBIG:
        why, fix = "", "a folder on another file system: run=DIR"
        if (limit := _largest_file()) is not None:
            why = f": this process may write {limit / 2**20:.3g} MiB to a file (ulimit -f)"
            fix = f"ulimit -f unlimited, {RERUN}"
        return NoSpace(f"{name or place or error}: the file may not grow larger{why}; {WHOLE}", fix=fix)
    temporary = Path(tempfile.gettempdir())
    folders = [Path(name).parent] if name else [*([place] if place else []), temporary, Path.cwd()]
    there = [(next((up for up in (each, *each.parents) if up.is_dir()), Path.cwd()), each) for each in folders]
    free, folder = min(((shutil.disk_usage(up).free, each) for up, each in there), key=lambda pair: pair[0])
    temporary_is_full = folder == temporary or temporary in folder.parents
    other = "; or TMPDIR=FOLDER_WITH_SPACE before the command" if temporary_is_full else ""
    what = "the disk quota is used up" if kind == errno.EDQUOT else "no space left on the disk"
    known = kind == errno.EDQUOT or bool(name) or free < LITTLE
    where = f"{name or folder} ({free / 2**20:,.0f} MiB free)" if known else str(error)
    return NoSpace(f"{what}: {where}; {WHOLE}", fix=f"free some space, {RERUN}{other}")


def no_access(error: OSError, whole: Path | None = None) -> InputError:
    """Whose file it is, its mode, and the command that opens it. `whole` is the folder that is needed with it."""
    if error.filename is None:
        return InputError(f"{error.strerror or error}", fix=f"give this user access, {RERUN}")
    closed = path = Path(error.filename)
    try:
        path.open("rb").close()
        reading = False
    except OSError as why:
        reading = why.errno in CLOSED
    if not reading:
        fix = f"give this user access to it, {RERUN}; or choose another folder: run=DIR"
        return InputError(f"{path}: {error.strerror}; {WHOLE}", fix=fix)
    while not os.access(closed, os.F_OK):  # a folder above it is closed
        closed = closed.parent
    whole = whole if closed == path else None
    opening = shell_line("chmod", *(["-R"] if whole else []), "a+rX", whole or closed)
    return InputError(f"{path} may not be read by this user{_owned(closed)}", fix=f"its owner gives access: {opening}")


def refuse_closed(folder: Path) -> None:
    """InputError where weights or settings in a folder may not be read: safetensors would call them missing."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json"):
            try:
                path.open("rb").close()
            except PermissionError as error:
                raise no_access(error, folder) from error


def _owned(path: Path) -> str:
    try:
        mode = path.stat().st_mode & 0o777
        return f" ({_user(os.geteuid())}): {path.name} belongs to {_user(path.stat().st_uid)} and has mode {mode:o}"
    except (OSError, ImportError, AttributeError):  # Windows
        return ""


def _user(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def closed_file(error: BaseException) -> OSError | None:
    """The error, or one that caused it, that says that a file is closed to this user."""
    return next((each for each in _causes(error) if isinstance(each, OSError) and each.errno in CLOSED), None)


def _full(error: BaseException) -> int | None:
    """Which of FULL the error itself says."""
    if isinstance(error, OSError) and error.errno in FULL:
        return error.errno
    return next((number for number, words in FULL.items() if words in str(error)), None)


def _largest_file() -> int | None:
    """Bytes of a file at most, where this process has a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
