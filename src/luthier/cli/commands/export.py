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
    prompts: Annotated[
        int, typer.Option(min=1, max=10**6, metavar="N", help="Held-out prompts for the parity check.")
    ] = 20,
    base: Base = None,
    data: Data = None,
    allow_code: AllowCode = False,
) -> None:
    """Write a run in a format for deployment, and check on its held-out prompts that it answers as the run does.

    Examples:
        luthier export runs/demo
        luthier export runs/demo --to gguf quantize=q8_0
    """
    from luthier.cli.terminal.console import starting

    starting("export")
    from luthier.cli.terminal.progress import Terminal, consent
    from luthier.recipe.parse import parse_export

    form = parse_export(to, settings or [])
    with Terminal() as terminal:
        terminal.stage("loading libraries")
        from luthier.pipeline.adopt import as_run
        from luthier.pipeline.export import export

        folder, _ = as_run(run, base, data, progress=terminal)
        found = export(folder, form, prompts=prompts, progress=terminal, allow_code=consent(allow_code))
    from luthier.cli.terminal.show_result import show_export

    show_export(found)
