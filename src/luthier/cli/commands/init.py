"""`luthier init`: a recipe from four questions."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.terminal.arguments import Method, Model, Task


def command(
    recipe: Annotated[Path, typer.Argument(help="YAML file to write; one that is there stays.")] = Path("recipe.yaml"),
    data: Annotated[str | None, typer.Option(help="File, folder, hub id, or builtin:NAME.")] = None,
    model: Model = None,
    method: Method = None,
    task: Task = None,
    run: Annotated[str | None, typer.Option(help="Folder of the run.", metavar="DIR")] = None,
) -> None:
    """Write a recipe by asking for data, base, method and folder; options answer beforehand. Nothing is overwritten.

    Examples:
        luthier init
        luthier init mine.yaml --data a.csv --model builtin --method lora --run runs/a
    """
    from luthier.cli.terminal.recipe_writer import write_recipe

    write_recipe(recipe, {"data": data, "model": model, "method": method, "task": task, "run": run})
