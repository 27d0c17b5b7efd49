"""`luthier cache`: tokenized data that is kept."""

from typing import Annotated

import typer


def command(clear: Annotated[bool, typer.Option("--clear", help="Delete all of it.")] = False) -> None:
    """Show the cache of tokenized data; LUTHIER_CACHE sets its folder."""
    from luthier.cli.terminal.progress import show_cache
    from luthier.data import cache as kept

    show_cache(str(kept.root()), [] if clear else kept.entries(), kept.clear() if clear else None)
