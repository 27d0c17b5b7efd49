"""`luthier demo`: a first run, offline."""

from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.terminal.arguments import complete_key, opened


def command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Keys of the demo's recipe with other values.",
            metavar="[KEY.PATH=VALUE]...",
            autocompletion=complete_key,
        ),
    ] = None,
) -> None:
    """Fine-tune the built-in base on built-in reviews, offline, in two minutes.

    Examples:
        luthier demo
        luthier demo method=bitfit train.epochs=2
    """
    from luthier.builtin import DEMO
    from luthier.core.shell import setting
    from luthier.recipe.config import RunConfig
    from luthier.recipe.identity import run_path
    from luthier.runs.folder import RunFolder

    given = ["run=runs/demo", *(overrides or [])]
    base = RunConfig.load(DEMO, given).run
    folders = (f"{base}-{number}" if number > 1 else base for number in count(1))
    unused = next(folder for folder in folders if not RunFolder(Path(str(folder))).result.is_file())
    config, terminal = opened("demo", DEMO, [*given, setting("run", unused)], run_path)
    from luthier.cli.terminal.progress import resumable

    with resumable(terminal):
        from luthier.pipeline.train import train

        result = train(config, recipe=DEMO, progress=terminal)
    from luthier.cli.terminal.show_result import show_demo

    show_demo(result)
