"""`luthier demo`: a first run, offline."""

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.commands.train import opened


def command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key.path=value overrides of the demo's recipe.", metavar="[KEY.PATH=VALUE]..."),
    ] = None,
) -> None:
    """Fine-tune the built-in base on built-in reviews, offline, in two minutes."""
    from luthier.builtin import DEMO

    config, terminal = opened("demo", DEMO, ["run=runs/demo", *(overrides or [])], _fresh)
    from luthier.cli.terminal.progress import resumable
    from luthier.cli.terminal.show_result import show_result
    from luthier.pipeline.train import train

    with resumable(terminal):
        show_result(train(config, recipe=DEMO, progress=terminal))


def _fresh(config: Any) -> Any:
    """Use the first unused folder of runs/demo, runs/demo-2, ..., so that a demo always runs."""
    from luthier.runs.folder import RunFolder

    base, number = config.run, 1
    while RunFolder(Path(config.run)).result.is_file():
        number += 1
        config = config.model_copy(update={"run": f"{base}-{number}"})
    return config
