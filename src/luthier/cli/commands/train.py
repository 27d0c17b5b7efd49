"""`luthier train`: train a run, or resume it."""

import sys

from luthier.cli.terminal.arguments import Data, From, Method, Model, Recipe, Task, opened, split_arguments


def command(
    recipe: Recipe = None,
    model: Model = None,
    data: Data = None,
    method: Method = None,
    task: Task = None,
    start: From = None,
) -> int:
    """Train a run. Rerun the same command to resume a stopped one.

    Examples:
        luthier train --data reviews.jsonl --model Qwen/Qwen2.5-0.5B --method lora
        luthier train recipe.yaml train.lr=1e-4 --run runs/second
    """
    given = {"model": model, "data": data, "method": method, "task": task, "method.from_adapter": start}
    path, overrides = split_arguments(recipe or [], given)
    from luthier.recipe.identity import run_path

    config, terminal = opened("train", path, overrides, run_path)
    from luthier.pipeline.processes import processes, run_on

    if (count := processes(config)) > 1:
        terminal.note(f"{count} processes train together, each with its share of a step")
        terminal.close()
        return run_on(count, sys.argv[1:])
    from luthier.cli.terminal.progress import resumable

    with resumable(terminal):
        from luthier.pipeline.train import train

        result = train(config, recipe=path, progress=terminal)
    from luthier.cli.terminal.show_result import show_result

    if result:  # a rank that follows has none
        show_result(result)
    return 0
