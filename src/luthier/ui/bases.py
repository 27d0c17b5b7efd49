"""Base models that are at hand: those that come with Luthier, and those below the folders of the page."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.models.pypi import PACKAGED, place_of

DEEPEST = 4
"""Levels of folders in which models are looked for."""
MOST_FOLDERS = 5_000
"""Folders that are looked into at most: a disk of another machine is slow."""
MOST = 24
"""Models that are listed at most."""
WEIGHTS = (".safetensors", ".gguf")


def found_bases(places: Sequence[Path]) -> list[dict[str, Any]]:
    """Bases by the `path` that a recipe takes, with `bytes` of their weights; `fetch` where they must be downloaded."""
    made: list[dict[str, Any]] = [{"path": "builtin", "bytes": None, "fetch": False}]
    for name, model in PACKAGED.items():
        made.append({"path": name, "bytes": model.megabytes * 10**6, "fetch": not place_of(name).is_file()})
    seen: set[str] = set()
    for place in places:
        for path, size in _below(place):
            if path not in seen and len(seen) < MOST:
                seen.add(path)
                made.append({"path": path, "bytes": size, "fetch": False})
    return made


def _below(place: Path) -> Iterator[tuple[str, int]]:
    """Folders with config.json and weights, and GGUF files, the nearest first; not those of runs or behind links."""
    waiting = [(str(place), 0)]
    for looked in range(MOST_FOLDERS):
        if looked >= len(waiting):
            return
        folder, depth = waiting[looked]
        try:
            with os.scandir(folder) as entries:
                inside = sorted((each for each in entries if not each.name.startswith(".")), key=lambda each: each.name)
        except OSError:  # not readable, or gone
            continue
        names = {each.name for each in inside}
        if "recipe.yaml" in names and "run.json" in names:
            continue
        sizes = {each.name: each.stat().st_size for each in inside if each.name.endswith(WEIGHTS) and each.is_file()}
        if "config.json" in names and (stored := [size for name, size in sizes.items() if name.endswith(WEIGHTS[0])]):
            yield folder, sum(stored)
        yield from ((f"{folder}{os.sep}{name}", size) for name, size in sizes.items() if name.endswith(WEIGHTS[1]))
        if depth < DEEPEST:
            waiting += [(each.path, depth + 1) for each in inside if each.is_dir(follow_symlinks=False)]
