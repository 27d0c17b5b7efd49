"""`luthier launch`: start a run on a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.terminal.arguments import Data, Method, Model, Recipe, Task, opened, split_arguments


def command(
    on: Annotated[str, typer.Option("--on", metavar="ray|slurm|kubernetes", help="The engine that starts the run.")],
    recipe: Recipe = None,
    model: Model = None,
    data: Data = None,
    method: Method = None,
    task: Task = None,
    nodes: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="Machines (Slurm, Kubernetes).")] = 1,
    devices: Annotated[
        int,
        typer.Option(
            min=1,
            max=1024,
            metavar="K",
            help="Processes on each machine, one per GPU; one per CPU with model.device=cpu (Slurm, Kubernetes).",
        ),
    ] = 1,
    partition: Annotated[str, typer.Option(help="Partition of the cluster (Slurm).", metavar="NAME")] = "",
    time: Annotated[str, typer.Option(help="Time limit of each job, HH:MM:SS (Slurm).", metavar="TIME")] = "",
    image: Annotated[str, typer.Option(help="Container image that has Luthier (Kubernetes).", metavar="IMAGE")] = "",
    volume: Annotated[
        str, typer.Option(help="PersistentVolumeClaim for runs and data (Kubernetes).", metavar="NAME")
    ] = "",
    address: Annotated[
        str, typer.Option(help="A running cluster; default: one on this machine (Ray).", metavar="HOST:PORT|auto")
    ] = "",
    workers: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="Processes of the run (Ray).")] = 1,
    retries: Annotated[
        int, typer.Option(min=0, max=1000, metavar="N", help="Restarts after a worker was lost (Ray).")
    ] = 3,
    write: Annotated[Path | None, typer.Option(metavar="DIR", help="Do not start: only write the files.")] = None,
) -> None:
    """Start a run on Ray, Slurm or Kubernetes; a job that is stopped or lost resumes from its checkpoint.

    Examples:
        luthier launch recipe.yaml --on slurm --nodes 2 --devices 8 --time 24:00:00
        luthier launch recipe.yaml --on kubernetes --image IMAGE --volume NAME
        luthier launch recipe.yaml --on ray --address auto --workers 16
    """
    path, overrides = split_arguments(recipe or [], {"model": model, "data": data, "method": method, "task": task})
    from luthier.recipe.identity import run_path

    config, terminal = opened("launch", path, overrides, run_path)
    with terminal:
        from luthier.launching.base import LaunchOptions
        from luthier.launching.launch import launch

        options = LaunchOptions(nodes, devices, partition, time, image, volume, address, workers, retries)
        result = launch(config, on, options, recipe=path, write=write, progress=terminal)
    if result is not None:
        from luthier.cli.terminal.show_result import show_result

        show_result(result)
