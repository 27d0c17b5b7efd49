"""Keep freed memory for the next tensor: on Linux, giving it back costs more than the arithmetic in it.

glibc maps each large block of memory and unmaps it as soon as it is freed. Every page of the next block is then a page
fault: to multiply two matrices of 18 MB, entry by entry, takes several times as long. Training allocates the same sizes
again and again, so kept memory is reused.
"""

import ctypes
import gc
import sys
from contextlib import suppress

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, up to blocks of a GiB. False where the allocator is not glibc's."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(set_option(MMAP_THRESHOLD, 2**30)) and bool(set_option(TRIM_THRESHOLD, 2**31 - 1))


def give_back_freed_memory() -> None:
    """Return free memory to the system, once, after much was loaded and dropped: glibc keeps it in small holes."""
    gc.collect()
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # musl has none
            ctypes.CDLL(None).malloc_trim(0)
