"""`luthier train`: train a run, or resume it."""

from pathlib import Path
from typing import TYPE_CHECKING

from luthier.cli.terminal.arguments import Data, Method, Model, Recipe, Task, split_arguments

if TYPE_CHECKING:
    from luthier.cli.terminal.progress import Terminal
    from luthier.recipe.config import RunConfig


def command(
    recipe: Recipe = None, model: Model = None, data: Data = None, method: Method = None, task: Task = None
) -> None:
    """Train. Rerun the same command to resume a stopped run."""
    path, overrides = split_arguments(recipe or [], {"model": model, "data": data, "method": method, "task": task})
    config, terminal = opened("train", path, overrides)
    from luthier.cli.terminal.progress import resumable
    from luthier.cli.terminal.show_result import show_result
    from luthier.pipeline.train import train

    with resumable(terminal):
        show_result(train(config, recipe=path, progress=terminal))


def opened(title: str, path: Path | None, overrides: list[str]) -> "tuple[RunConfig, Terminal]":
    """Read the recipe, ask about code that is not the user's own, and print the first line of a run."""
    from luthier.cli.terminal.progress import Terminal, consent, starting
    from luthier.recipe.config import RunConfig
    from luthier.recipe.consent import refuse_foreign
    from luthier.recipe.identity import run_path

    notes: list[str] = []
    config = RunConfig.load(path, overrides, notes)
    notes += refuse_foreign(path, config.model, config.evaluate, overrides, consent())
    terminal = Terminal(config.train.log_every)
    starting(title, f"{config.method.name} on {config.sources}", run_path(config, path))
    for note in notes:
        terminal.note(note)
    return config, terminal
