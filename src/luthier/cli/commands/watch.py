"""`luthier watch`: follow a run from another terminal."""

from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Argument(help="Folder or URL of a run.", metavar="RUN")],
) -> None:
    """Follow a run: its loss curve, latest figures and time left, until it ends. Exit code 0 if the run is finished.

    Examples:
        luthier watch runs/demo
        luthier watch runs/demo | tee watch.log
    """
    from luthier.cli.terminal.show_runs import follow

    if follow(run) != "finished":
        raise typer.Exit(1)
