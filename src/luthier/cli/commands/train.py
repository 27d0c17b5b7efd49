"""`luthier train`: train a run, or resume it."""

from luthier.cli.terminal.arguments import Data, Method, Model, Recipe, Task, split_arguments


def command(
    recipe: Recipe = None, model: Model = None, data: Data = None, method: Method = None, task: Task = None
) -> None:
    """Train. Rerun the same command to resume a stopped run."""
    from luthier.cli.terminal.progress import Terminal, consent, resumable, starting
    from luthier.recipe.config import RunConfig
    from luthier.recipe.consent import refuse_foreign
    from luthier.recipe.identity import run_path

    path, overrides = split_arguments(recipe or [], {"model": model, "data": data, "method": method, "task": task})
    notes: list[str] = []
    config = RunConfig.load(path, overrides, notes)
    notes += refuse_foreign(path, config.model, config.evaluate, overrides, consent())
    terminal = Terminal(config.train.log_every)
    starting("train", f"{config.method.name} on {config.sources}", run_path(config, path))
    for note in notes:
        terminal.note(note)
    from luthier.cli.terminal.show_result import show_result
    from luthier.pipeline.train import train

    with resumable(terminal):
        show_result(train(config, recipe=path, progress=terminal))
