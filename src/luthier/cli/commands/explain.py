"""`luthier explain`: what a name or a key is."""

from typing import Annotated

import typer


def command(
    kind: Annotated[
        str,
        typer.Argument(
            help="method, task, format, evaluation, export, optimizer, listener, filetype, "
            "the name of one, or a block of a recipe such as train."
        ),
    ],
    name: Annotated[str, typer.Argument(help="Name, for example lora.")] = "",
) -> None:
    """Explain a name: idea, formula, paper, and every field.

    Examples:
        luthier explain lora
        luthier explain train.lr
    """
    from luthier.cli.terminal.explain import explanation

    typer.echo(explanation(kind, name))
