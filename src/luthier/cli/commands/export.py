"""`luthier export`: write a run in a form to deploy."""

from typing import Annotated

import typer

from luthier.cli.terminal.arguments import AllowCode, Base, Data, RunArgument


def command(
    run: RunArgument,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="KEY=VALUE of the format, as explain export lists them.", metavar="[KEY=VALUE]..."),
    ] = None,
    to: Annotated[str, typer.Option(help="Export format; see luthier list exports.")] = "merged",
    prompts: Annotated[int, typer.Option(min=1, max=10**6, help="Held-out prompts for the parity check.")] = 20,
    base: Base = None,
    data: Data = None,
    allow_code: AllowCode = False,
) -> None:
    """Write a run in a format for deployment, and check on its held-out prompts that it answers as the run does."""
    from luthier.cli.terminal.progress import Terminal, consent, starting

    starting("export", f"{run} to {to}")
    from luthier.cli.terminal.show_result import show_export
    from luthier.pipeline.adopt import as_run
    from luthier.pipeline.export import export
    from luthier.recipe.parse import parse_export

    form = parse_export(to, settings or [])
    run, _ = as_run(run, base, data, progress=Terminal())
    show_export(export(run, form, prompts=prompts, progress=Terminal(), allow_code=consent(allow_code)))
