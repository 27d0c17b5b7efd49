"""`luthier evaluate`: measure a finished run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.terminal.arguments import AllowCode, Base, Data, DropLayers, RunArgument
from luthier.core.errors import InputError


def command(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings of this evaluation: evaluate.KEY=VALUE; for an adapter's folder also data.KEY=VALUE, "
            "task=NAME, run=DIR.",
            metavar="[EVALUATE.KEY=VALUE]...",
        ),
    ] = None,
    base: Base = None,
    data: Data = None,
    harness: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness instead, as comma-separated names.", metavar="TASKS"),
    ] = None,
    harness_path: Annotated[Path | None, typer.Option(help="Folder with your own task files (YAML).")] = None,
    harness_limit: Annotated[
        int | None, typer.Option(min=1, max=10**9, metavar="N", help="Maximum rows of each task.")
    ] = None,
    drop_layers: DropLayers = 0,
    allow_code: AllowCode = False,
) -> None:
    """Measure a run on its held-out rows, base and tuned model, or on tasks of lm-evaluation-harness.

    Examples:
        luthier evaluate runs/demo
        luthier evaluate runs/demo evaluate.rows=200
        luthier evaluate runs/demo --harness arc_easy --harness-limit 100
    """
    from luthier.cli.terminal.console import starting

    starting("evaluate")
    if harness is None and (harness_path or harness_limit):
        raise InputError("--harness-path and --harness-limit belong to --harness TASKS")
    from luthier.cli.terminal.progress import Terminal, consent

    with Terminal() as terminal:
        terminal.stage("loading libraries")
        from luthier.pipeline import evaluate as stage
        from luthier.pipeline.adopt import as_run

        folder, left = as_run(run, base, data, overrides or [], terminal, rows=harness is None)
        own: dict[str, Any] = {"drop_layers": drop_layers, "allow_code": consent(allow_code), "progress": terminal}
        if harness is None:
            found = stage.evaluate(folder, left, **own)
        elif left:
            raise InputError(f"{left[0]} has no effect on the harness", fix="leave it out, or leave --harness out")
        else:
            tasks = [task.strip() for task in harness.split(",") if task.strip()]
            found = stage.harness(folder, tasks, folder_of_tasks=harness_path, limit=harness_limit, **own)
    from luthier.cli.terminal.show_result import show_harness, show_result

    if harness is None:
        show_result(found)
    else:
        show_harness(found, str(folder))
