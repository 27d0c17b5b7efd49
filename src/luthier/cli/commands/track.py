"""`luthier track`: send a run to a tracker."""

from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Argument(help="Folder or URL of a run: finished, stopped or killed.", metavar="RUN")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="KEY=VALUE of the tracker, as explain tracker lists them.", metavar="[KEY=VALUE]..."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="The tracker; see luthier list trackers. Default: those of the run's recipe.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Make a second run there if it has this one already.")] = False,
) -> None:
    """Send a run that has ended to a tracker, for example SwanLab, with every step, scores, curve and report.

    Examples:
        luthier track runs/demo --to swanlab
        luthier track runs/demo --to mlflow project=reviews
    """
    from luthier.cli.terminal.console import console, starting
    from luthier.core.errors import InputError

    starting("track")
    if settings and to is None:
        raise InputError(f"{settings[0]} is a setting of a tracker, and none is named", fix="--to NAME")
    from luthier.cli.terminal.progress import Terminal

    with Terminal() as terminal:
        terminal.stage("loading libraries")
        from luthier.pipeline.track import track
        from luthier.recipe.parse import parse_member
        from luthier.tracking.base import TRACKERS

        tracker = parse_member(TRACKERS, to, settings or []) if to else None
        found = track(run, tracker, again=again, progress=terminal)
    for name, entry in found.items():
        console.print(f"  {name}: {entry['state']}, up to step {entry['step']}, project {entry['settings']['project']}")
