"""`luthier choose`: which method to take."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.terminal.arguments import Data, Model, Recipe, Task, split_arguments


def command(
    recipe: Recipe = None,
    model: Model = None,
    data: Data = None,
    task: Task = None,
    variants: Annotated[
        int | None, typer.Option(metavar="N", help="Tuned models to keep and serve over one base.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(metavar="MS", help="Max ms per token, or 'merged' (as fast as the base).")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of another machine's GPU (or CPU, with model.device=cpu), such as 12GB.")
    ] = None,
    devices: Annotated[int | None, typer.Option(metavar="N", help="Number of such GPUs.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit of training, such as 45min or 2h.")] = None,
    rows: Annotated[int | None, typer.Option(metavar="N", help="Training rows, instead of reading data.")] = None,
    evidence: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A compare.json; runs/*/compare.json are always used.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the result, as JSON.")] = False,
) -> None:
    """Recommend a method, with verifiable reasons, without loading weights; exit code 2 if nothing fits.

    Examples:
        luthier choose --model Qwen/Qwen2.5-0.5B-Instruct --data reviews.jsonl
        luthier choose --model builtin --rows 2000 --memory 12GB --variants 50
    """
    from luthier.cli.terminal.console import starting

    if not as_json:
        starting("choose")
    from luthier.cli.terminal.progress import Terminal, consent
    from luthier.core.events import Progress
    from luthier.core.strict_json import to_json
    from luthier.planning.advisor.question import ChooseOptions
    from luthier.recipe.config import RunConfig
    from luthier.recipe.consent import refuse_foreign

    wanted = ChooseOptions.parse(
        variants=variants, latency=latency, memory=memory, devices=devices, time=time, rows=rows
    )
    options = {"model": model, "data": data, "task": task}
    path, overrides = split_arguments(recipe or [], options)
    given = [*(recipe or []), *(word for key, value in options.items() if value for word in (f"--{key}", value))]
    config = RunConfig.load(path, overrides)
    refuse_foreign(path, config.model, None, overrides, consent())
    with Progress() if as_json else Terminal() as progress:
        progress.stage("loading libraries")
        from luthier.pipeline.choose import choose

        found = choose(config, wanted, evidence=evidence or [], given=given, progress=progress)
    if as_json:
        typer.echo(to_json(found, indent=1, ensure_ascii=False))
    else:
        from luthier.cli.terminal.show_choice import show_choice

        show_choice(found)
    if not found["ranked"]:
        raise typer.Exit(2)
