"""`luthier plan`: memory and time first."""

from typing import Annotated

import typer

from luthier.cli.terminal.arguments import Data, From, Method, Model, Recipe, Task, opened, split_arguments


def command(
    recipe: Recipe = None,
    model: Model = None,
    data: Data = None,
    method: Method = None,
    task: Task = None,
    start: From = None,
    devices: Annotated[
        str | None, typer.Option(metavar="NxNAME", help="Devices of one node of another machine, such as 8xH100.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(metavar="M", help="Number of such nodes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the result, as JSON.")] = False,
) -> None:
    """Estimate memory and time of a run before any weights are downloaded: exit code 2 if it will not fit.

    Examples:
        luthier plan --model Qwen/Qwen2.5-0.5B --data reviews.jsonl --method lora
        luthier plan recipe.yaml train.batch_size=32
        luthier plan recipe.yaml --devices 8xH100 --nodes 4
    """
    from luthier.planning.devices import Cluster

    cluster = Cluster.parse(devices, nodes)
    given = {"model": model, "data": data, "method": method, "task": task, "method.from_adapter": start}
    path, overrides = split_arguments(recipe or [], given)
    if as_json:
        from luthier.cli.terminal.progress import consent
        from luthier.core.strict_json import to_json
        from luthier.pipeline.plan import plan as plan_run
        from luthier.recipe.config import RunConfig
        from luthier.recipe.consent import refuse_foreign

        config = RunConfig.load(path, overrides)
        refuse_foreign(path, config.model, config.evaluate, overrides, consent())
        found = plan_run(config, cluster)
        typer.echo(to_json(found, indent=1, ensure_ascii=False))
    else:
        config, terminal = opened("plan", path, overrides)
        with terminal:
            from luthier.pipeline.plan import plan as plan_run

            found = plan_run(config, cluster, progress=terminal)
        from luthier.cli.terminal.show_check import show_plan

        show_plan(found)
    if found["fits"] is False:
        raise typer.Exit(2)
