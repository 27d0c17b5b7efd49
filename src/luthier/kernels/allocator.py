"""Keep freed memory for the next tensor: on Linux, giving it back costs more than the arithmetic in it.

glibc maps each large block of memory anew and gives it back as soon as it is freed. Every page of the next block is
then a fault that the kernel answers with zeros: to multiply two matrices of 18 MB, entry by entry, takes many times as
long as the multiplying. Training asks for the same sizes again and again, so kept memory is used again.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, up to blocks of a GiB. False where the system's allocator is another."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(set_option(MMAP_THRESHOLD, 2**30)) and bool(set_option(TRIM_THRESHOLD, 2**31 - 1))


def give_back_freed_memory() -> None:
    """Give back what is free now, once, after much has been loaded and dropped again: glibc keeps it in small holes."""
    gc.collect()
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # musl has none
            ctypes.CDLL(None).malloc_trim(0)
