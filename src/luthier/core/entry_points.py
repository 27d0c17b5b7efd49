"""Entry points of other packages, read without importlib.metadata, which parses every package there is."""

import sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One entry point: a name in a recipe, and the module behind it."""

    name: str
    module: str


@cache
def installed(group: str) -> tuple[Entry, ...]:
    """The entry points of a group, of every package on sys.path; the first of a name counts."""
    found: dict[str, Entry] = {}
    for folder in map(Path, sys.path):
        for file in sorted(folder.glob("*-info/entry_points.txt")):
            text = file.read_text(encoding="utf-8", errors="replace")
            if f"[{group}]" in text:
                parser = ConfigParser(delimiters=("=",), strict=False, interpolation=None)
                parser.optionxform = str  # type: ignore[assignment, method-assign]  # names keep their case
                parser.read_string(text)
                for name, module in parser.items(group):
                    found.setdefault(name, Entry(name, module.partition(":")[0].strip()))
    return tuple(found.values())
