"""`luthier compare`: methods side by side."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from luthier.cli.terminal.arguments import Data, Model, Task, complete_key, opened, split_arguments


def command(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(
            help="As for train: a YAML recipe, or demo, and keys with their values.",
            metavar="[RECIPE] [KEY.PATH=VALUE]...",
            autocompletion=complete_key,
        ),
    ] = None,
    model: Model = None,
    data: Data = None,
    task: Task = None,
    methods: Annotated[str, typer.Option(help="all, or comma-separated names; see luthier list methods.")] = "all",
    budget: Annotated[str | None, typer.Option(help="Time limit for all runs: 10m, 2h.", metavar="TIME")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, max=10**15, metavar="N", help="Training tokens of each run.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="Runs of each method, with consecutive seeds.")
    ] = 1,
    tune: Annotated[bool, typer.Option("--tune", help="First search each method's learning rate and size.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1000, metavar="N", help="Parallel runs (default: auto).")
    ] = None,
    on: Annotated[
        Literal["here", "ray", "slurm"],
        typer.Option("--on", metavar="ray|slurm", help="Where runs are made, if not on this machine."),
    ] = "here",
    address: Annotated[
        str, typer.Option(help="A running cluster; default: one on this machine (Ray).", metavar="HOST:PORT|auto")
    ] = "",
    partition: Annotated[str, typer.Option(help="Partition of the cluster (Slurm).", metavar="NAME")] = "",
    time: Annotated[str, typer.Option(help="Time limit of each job, HH:MM:SS (Slurm).", metavar="TIME")] = "",
) -> None:
    """Train every method on the same base, data and tokens, and test which differences are significant.

    Examples:
        luthier compare demo --methods lora,bitfit,prompt
        luthier compare recipe.yaml --budget 2h --seeds 3
        luthier compare recipe.yaml --on slurm --partition gpu --seeds 3
    """
    from luthier.builtin import DEMO

    path, overrides = split_arguments(recipe or [], {"model": model, "data": data, "task": task})
    if path == Path("demo") and not Path("demo").is_file():  # a folder of that name is not a recipe
        path, overrides = DEMO, ["run=runs/compare-demo", *overrides]
    config, terminal = opened("compare", path, overrides, subject=f"methods {methods}")
    from luthier.cli.terminal.progress import resumable

    with resumable(terminal):
        from luthier.comparison.compare import compare, executor_on
        from luthier.comparison.runner import CompareConfig
        from luthier.planning.advisor.question import seconds_of

        seconds = None if budget is None else seconds_of(budget, "--budget", default_unit="")
        options = CompareConfig(methods, seconds, tokens, seeds, tune, workers)
        executor = executor_on(on, address, partition, time)
        found = compare(config, options, recipe=path, executor=executor, progress=terminal)
    from luthier.cli.terminal.show_result import show_comparison

    show_comparison(found)
