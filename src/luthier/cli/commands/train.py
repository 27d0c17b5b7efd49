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
    """Train a run. Rerun the same command to resume a stopped one.

    Examples:
        luthier train --data reviews.jsonl --model Qwen/Qwen2.5-0.5B --method lora
        luthier train recipe.yaml train.lr=1e-4 --run runs/second
    """
    given = {"model": model, "data": data, "method": method, "task": task, "method.from_adapter": start}
    path, overrides = split_arguments(recipe or [], given)
    from luthier.recipe.identity import run_path

    config, terminal = opened("train", path, overrides, run_path)
    from luthier.cli.terminal.progress import resumable

    with resumable(terminal):
        from luthier.pipeline.train import train

        result = train(config, recipe=path, progress=terminal)
    from luthier.cli.terminal.show_result import show_result

    show_result(result)
