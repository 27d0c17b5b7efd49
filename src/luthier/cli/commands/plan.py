"""`luthier plan`: memory and time first."""

import typer

from luthier.cli.terminal.arguments import Data, From, Method, Model, Recipe, Task, opened, split_arguments


def command(
    recipe: Recipe = None,
    model: Model = None,
    data: Data = None,
    method: Method = None,
    task: Task = None,
    start: From = None,
) -> None:
    """Estimate memory and time of a run before any weights are downloaded: exit code 2 if it will not fit."""
    given = {"model": model, "data": data, "method": method, "task": task, "method.from_adapter": start}
    path, overrides = split_arguments(recipe or [], given)
    config, terminal = opened("plan", path, overrides)
    from luthier.cli.terminal.progress import show_plan
    from luthier.pipeline.plan import plan as plan_run

    found = plan_run(config, progress=terminal)
    show_plan(found)
    if found["fits"] is False:
        raise typer.Exit(2)
