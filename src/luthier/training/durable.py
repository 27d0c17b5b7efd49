"""Files that are whole after a kill or a power failure: written aside, synced to the disk, renamed."""

from __future__ import annotations

import os
from pathlib import Path


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
