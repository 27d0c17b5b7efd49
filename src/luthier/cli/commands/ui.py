"""`luthier ui`: the page in a browser."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder of the runs; new ones are written there.", metavar="DIR")
    ] = Path("runs"),
    data: Annotated[
        list[Path] | None, typer.Option(help="Folders from which the page may choose files.", metavar="FOLDER")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback lets other machines in.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 selects a free one.")] = 8765,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address and open no browser.")] = False,
) -> None:
    """Open the page: from a data file to a deployed model in a browser, and every run live. Ctrl-C stops it alone.

    Examples:
        luthier ui
        luthier ui --dir experiments --data ~/datasets --port 9000
    """
    from luthier.ui.launch import serve_page

    serve_page(folder, data or [Path.cwd()], host, port, browser=not no_browser)
