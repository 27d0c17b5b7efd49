"""`luthier plan`: memory and time first."""

import typer

from luthier.cli.terminal.arguments import Data, Method, Model, Recipe, Task, split_arguments


def command(
    recipe: Recipe = None, model: Model = None, data: Data = None, method: Method = None, task: Task = None
) -> None:
    """Estimate memory and time of a run before any weights are downloaded: exit code 2 if it will not fit."""
    from luthier.cli.terminal.progress import Terminal, consent, show_plan, starting
    from luthier.recipe.config import RunConfig
    from luthier.recipe.consent import refuse_foreign

    path, overrides = split_arguments(recipe or [], {"model": model, "data": data, "method": method, "task": task})
    config = RunConfig.load(path, overrides)
    starting("plan", f"{config.method.name} on {config.sources}")
    refuse_foreign(path, config.model, config.evaluate, overrides, consent())
    from luthier.pipeline.plan import plan as plan_run

    found = plan_run(config, progress=Terminal())
    show_plan(found)
    if found["fits"] is False:
        raise typer.Exit(2)
