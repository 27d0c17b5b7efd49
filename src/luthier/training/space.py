"""Is the disk full? Libraries hide the system's answer in messages of their own."""

from __future__ import annotations

import errno


def is_full(error: BaseException | None) -> bool:
    """True where the error, or one that caused it, says that no space is left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
