"""Did the disk or the memory run out? Libraries hide the system's answer in messages of their own."""

from __future__ import annotations

import errno

from luthier.errors import InputError, NoSpace, OutOfMemory

FULL = "No space left on device"
NO_MEMORY = (
    "CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory",
    "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "std::bad_alloc",
)  # fmt: skip
"""How torch and the libraries below it say that memory ran out, where they raise no OutOfMemoryError."""


def is_full(error: BaseException | None) -> bool:
    """True where the error, or one that caused it, says that no space is left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if FULL in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """True where the error says that the memory of the machine or of its GPU ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def explained(error: Exception) -> InputError | None:
    """The same error with what to do about it, where the machine is at fault; None where it is not."""
    if isinstance(error, InputError):
        return None
    if is_full(error):
        return NoSpace(
            f"no space left on the disk: {_where(error)}; what was saved before is whole",
            mend="free some space and give the same command again: the run goes on from its last checkpoint",
        )
    if is_out_of_memory(error):
        return OutOfMemory(
            f"memory ran out: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}",
            mend="evaluate.batch_size=1 where it was in an evaluation; else a smaller base, or one in 4 bit "
            "(method=qlora)",
        )
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return InputError(
            f"{_where(error)}: {error.strerror}; what was saved before is whole",
            mend="give this user access to it and give the same command again, or choose another folder with run=DIR",
        )
    return None


def _where(error: Exception) -> str:
    return str(getattr(error, "filename", None) or error)
