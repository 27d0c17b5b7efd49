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
    """Estimate memory and time of a run before any weights are downloaded: exit code 2 if it will not fit.

    Examples:
        luthier plan --model Qwen/Qwen2.5-0.5B --data reviews.jsonl --method lora
        luthier plan recipe.yaml train.batch_size=32
    """
    given = {"model": model, "data": data, "method": method, "task": task, "method.from_adapter": start}
    path, overrides = split_arguments(recipe or [], given)
    config, terminal = opened("plan", path, overrides)
    with terminal:
        from luthier.pipeline.plan import plan as plan_run

        found = plan_run(config, progress=terminal)
    from luthier.cli.terminal.show_check import show_plan

    show_plan(found)
    if found["fits"] is False:
        raise typer.Exit(2)
