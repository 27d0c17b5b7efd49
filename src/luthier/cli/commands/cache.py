"""`luthier cache`: tokenized data and unpacked bases that are kept."""

import time
from typing import Annotated

import typer


def command(clear: Annotated[bool, typer.Option("--clear", help="Delete all of it.")] = False) -> None:
    """Show the cache of tokenized data and unpacked bases; LUTHIER_CACHE sets its folder.

    Examples:
        luthier cache
        luthier cache --clear
    """
    from luthier.cli.terminal.console import console, safe
    from luthier.core.files import cache_root
    from luthier.data import cache as kept

    if clear:
        console.print(f"{safe(str(cache_root()))}: {kept.clear() / 2**20:,.0f} MiB freed")
        return
    entries = kept.entries()
    total = sum(size for _, size, _ in entries)
    console.print(f"{safe(str(cache_root()))}: {len(entries)} entries, {total / 2**20:,.0f} MiB")
    for entry, size, used in entries:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
        console.print(f"  {entry.name}  {size / 2**20:,.1f} MiB, last used {day}")
