"""`luthier demo`: a first run, offline."""

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key.path=value overrides of the demo's recipe.", metavar="[KEY.PATH=VALUE]..."),
    ] = None,
) -> None:
    """Fine-tune the built-in base on built-in reviews, offline, in two minutes."""
    from luthier.builtin import DEMO
    from luthier.cli.terminal.progress import Terminal, resumable, starting
    from luthier.recipe.config import RunConfig

    config = _fresh(RunConfig.load(DEMO, ["run=runs/demo", *(overrides or [])]))
    terminal = Terminal(config.train.log_every)
    starting("demo", f"{config.method.name} on {config.sources}", Path(config.run))
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
