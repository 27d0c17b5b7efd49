"""`luthier train`: train a run, or resume it."""

from luthier.cli.terminal.arguments import Data, From, Method, Model, Recipe, Task, opened, split_arguments


def command(
    recipe: Recipe = None,
    model: Model = None,
    data: Data = None,
    method: Method = None,
    task: Task = None,
    start: From = None,
) -> None:
    """Train. Rerun the same command to resume a stopped run."""
    given = {"model": model, "data": data, "method": method, "task": task, "method.from_adapter": start}
    path, overrides = split_arguments(recipe or [], given)
    from luthier.recipe.identity import run_path

    config, terminal = opened("train", path, overrides, run_path)
    from luthier.cli.terminal.progress import resumable
    from luthier.cli.terminal.show_result import show_result
    from luthier.pipeline.train import train

    with resumable(terminal):
        show_result(train(config, recipe=path, progress=terminal))
