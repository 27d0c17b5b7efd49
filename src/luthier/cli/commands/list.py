"""`luthier list`: names of a kind."""

from typing import Annotated

import typer


def command(
    kind: Annotated[
        str,
        typer.Argument(
            help="methods, tasks, formats, evaluations, exports, optimizers, trackers, filetypes, data or models."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the methods as JSON.")] = False,
) -> None:
    """List the names of a kind, each with a description.

    Examples:
        luthier list methods
        luthier list formats
    """
    from luthier.cli.terminal.explain import listing, methods_as_json
    from luthier.core.errors import InputError

    if as_json and kind.removesuffix("s") != "method":
        raise InputError(f"--json lists methods, not {kind}", fix="luthier list methods --json")
    typer.echo(methods_as_json() if as_json else listing(kind))
