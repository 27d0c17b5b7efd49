"""`luthier check`: look at the data first."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.terminal.arguments import Task, complete_key, given_options, is_override, opened, split_arguments

if TYPE_CHECKING:
    from luthier.recipe.config import RunConfig
    from luthier.recipe.parse import RecipeSource


def command(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="A YAML recipe or the data itself (file, folder, hub id, builtin:NAME), and key.path=value overrides.",
            metavar="[RECIPE_OR_DATA] [KEY.PATH=VALUE]...",
            autocompletion=complete_key,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model whose tokenizer to use: folder, hub id, or builtin.")] = None,
    task: Task = None,
    out: Annotated[Path | None, typer.Option(help="Output folder (default: runs/check-<recipe or data>).")] = None,
) -> None:
    """Check the data before training: exit code 2 if train would stop, with every row that is at fault.

    Examples:
        luthier check reviews.jsonl --model Qwen/Qwen2.5-0.5B-Instruct
        luthier check recipe.yaml data.validation=0.2
    """
    from luthier.recipe.identity import path_beside

    source, overrides = split_arguments(data or [])
    recipe = source if source and str(source).endswith((".yaml", ".yml")) else None
    # Not a Path, which would drop a leading ./ that distinguishes a file from a hub id.
    typed = next((argument for argument in data or [] if not is_override(argument)), None)
    overrides = given_options({"data": None if recipe else typed, "model": model, "task": task}) + overrides

    def place(config: "RunConfig", path: "RecipeSource | None") -> Path:
        return out or path_beside("check", config, path)

    config, terminal = opened("check", recipe, overrides, place, subject="", measures=False)
    with terminal:
        from luthier.cli.terminal.show_check import show_check
        from luthier.pipeline.check import check as check_data

        found = check_data(config, place(config, recipe), progress=terminal)
    show_check(found)
    if found["stops"]:
        raise typer.Exit(2)
