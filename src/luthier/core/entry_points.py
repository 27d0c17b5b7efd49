"""Entry points of other packages, read without importlib.metadata, which parses every package there is."""

import sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path


@cache
def installed(group: str) -> dict[str, str]:
    """Name -> module of the entry points of a group, of every package on sys.path; the first of a name counts."""
    found: dict[str, str] = {}
    for folder in map(Path, sys.path):
        for file in sorted(folder.glob("*-info/entry_points.txt")):
            text = file.read_text(encoding="utf-8", errors="replace")
            if f"[{group}]" in text:
                parser = ConfigParser(delimiters=("=",), strict=False, interpolation=None)
                parser.optionxform = str  # type: ignore[assignment, method-assign]  # names keep their case
                parser.read_string(text)
                for name, module in parser.items(group):
                    found.setdefault(name, module.partition(":")[0].strip())
    return found
