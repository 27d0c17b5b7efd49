"""`luthier list`: names of a kind."""

from typing import Annotated

import typer


def command(
    kind: Annotated[
        str,
        typer.Argument(
            help="methods, tasks, formats, evaluations, exports, optimizers, listeners, filetypes, data or models."
        ),
    ],
) -> None:
    """List the names of a kind, each with a description."""
    from luthier.cli.terminal.explain import listing

    typer.echo(listing(kind))
