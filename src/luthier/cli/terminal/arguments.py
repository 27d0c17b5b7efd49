"""What several commands take from the command line: recipe, overrides, options."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.errors import InputError

if TYPE_CHECKING:
    from luthier.cli.terminal.progress import Terminal
    from luthier.recipe.config import RunConfig
    from luthier.recipe.parse import RecipeSource


def complete_key(incomplete: str) -> list[str]:
    """Keys of a recipe that begin so, for a shell: train.lr=, method.rank=."""
    from luthier.core.registry import Config
    from luthier.methods.base import METHODS
    from luthier.recipe.config import RunConfig

    blocks: dict[str, type[Config]] = {"method": METHODS.get("lora")}
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config) and name != "method":
            blocks[name] = field.annotation
    keys = [*RunConfig.model_fields, *(f"{block}.{key}" for block, made in blocks.items() for key in made.model_fields)]
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


def complete_method(incomplete: str) -> list[str]:
    """Names of methods that begin so, for a shell."""
    from luthier.methods.base import METHODS

    return [name for name in METHODS.all_names() if name.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Names of tasks that begin so, for a shell."""
    from luthier.tasks.base import TASKS

    return [name for name in TASKS.all_names() if name.startswith(incomplete)]


Recipe = Annotated[
    list[str] | None,
    typer.Argument(
        help="A YAML recipe or its URL, and keys of one with their values: train.lr=1e-4, --train.lr 1e-4 or "
        "--train.lr=1e-4. A file whose name contains = is read as a file if it exists.",
        metavar="[RECIPE] [KEY.PATH=VALUE]...",
        autocompletion=complete_key,
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "--base", help="Base model: folder, hub id, builtin, or smollm2.", metavar="MODEL"),
]
From = Annotated[
    str | None,
    typer.Option("--from", help="Folder of an adapter, or of a run, to train on; says method and base.", metavar="DIR"),
]
Data = Annotated[str | None, typer.Option(help="File, folder, hub id, or builtin:NAME.")]
Method = Annotated[
    str | None,
    typer.Option(help="Fine-tuning method; see luthier list methods.", autocompletion=complete_method),
]
Task = Annotated[str | None, typer.Option(help="What to learn; see luthier list tasks.", autocompletion=complete_task)]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Allow the code and the judge that the run's recipe.yaml names; look first."),
]
RunArgument = Annotated[
    str, typer.Argument(help="Folder or URL of a run, or folder of an adapter in PEFT's format.", metavar="RUN")
]
Base = Annotated[str | None, typer.Option(help="Base of an adapter, instead of the one that it names.")]
DropLayers = Annotated[
    int,
    typer.Option(
        min=0, max=65_536, metavar="N", help="Lowest blocks whose bottleneck adapters are left out (AdapterDrop)."
    ),
]


TYPED_KEY = re.compile(r"--([a-z_]+(?:\.\w+)+|run)(?:=(.*))?", re.DOTALL)
"""An option that is a key of a recipe: --train.lr, --run."""
TAKE_KEYS = ("train", "launch", "plan", "check", "compare", "choose", "demo", "evaluate")
"""Commands that take keys of a recipe."""


def as_typed_keys(words: list[str]) -> list[str]:
    """The command line with `--train.lr 1e-4` and `--train.lr=1e-4` as train.lr=1e-4, and `--run DIR` as run=DIR."""
    if not words or words[0] not in TAKE_KEYS:
        return words
    found, left = [words[0]], words[1:]
    while left:
        word = left.pop(0)
        key = TYPED_KEY.fullmatch(word)
        if word == "--":
            return [*found, word, *left]
        if key is None:
            found.append(word)
            continue
        value = key[2]
        if value is None:
            value = left.pop(0) if left and not left[0].startswith("--") else "true"
        from luthier.core.shell import setting

        found.append(setting("run", value) if key[1] == "run" else f"{key[1]}={value}")
    return found


TEXTS = ("model", "data", "method.from_adapter")


def split_arguments(
    arguments: list[str], options: dict[str, str | None] | None = None
) -> "tuple[RecipeSource | None, list[str]]":
    """Return (recipe or None, overrides, options first): the recipe is the one argument that is not an override."""
    recipes = [argument for argument in arguments if not is_override(argument)]
    if len(recipes) > 1:
        what = f"one recipe is one run, these are {len(recipes)}: {', '.join(recipes)}"
        raise InputError(what, fix="key.path=value sets a value")
    overrides = given_options(options or {}) + [argument for argument in arguments if is_override(argument)]
    if not recipes:
        return None, overrides
    from luthier.recipe.parse import recipe_source

    return recipe_source(recipes[0]), overrides


def is_override(argument: str) -> bool:
    """Is it key.path=value? An existing file of that name is a file, and so is anything with a slash in the key."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and not {"/", os.sep} & set(key) and not os.path.isfile(argument)  # noqa: PTH113 (never raises)


def given_options(options: dict[str, str | None]) -> list[str]:
    """Return options as overrides; names and paths are quoted, so that YAML reads them as text."""
    return [
        f"{key}={json.dumps(value, ensure_ascii=False) if key in TEXTS else value}"
        for key, value in options.items()
        if value is not None
    ]


def opened(
    command: str,
    path: "RecipeSource | None",
    overrides: list[str],
    into: "Callable[[RunConfig, RecipeSource | None], Path] | None" = None,
    subject: str | None = None,
    measures: bool = True,
) -> "tuple[RunConfig, Terminal]":
    """Print the first line of a command, read the recipe, and ask about code that is not the user's own.

    `into` says where the command writes, and `subject` what it applies to the data, by default the method; a command
    that `measures` nothing runs no code of the recipe's evaluation.
    """
    from luthier.cli.terminal.console import console, safe, starting
    from luthier.core.ranks import BEGUN

    shown = BEGUN not in os.environ
    if shown:
        starting(command)
    from luthier.core.shell import redacted
    from luthier.recipe.config import RunConfig
    from luthier.recipe.consent import refuse_foreign
    from luthier.runs.remote import is_url

    notes: list[str] = []
    config = RunConfig.load(path, overrides, notes)
    what = config.sources if subject == "" else f"{subject or config.method.name} on {config.sources}"
    target = f" -> {safe(config.run if is_url(config.run) else str(into(config, path)))}" if into else ""
    if shown:
        console.print(f"  {safe(redacted(what))}{target}")
    from luthier.cli.terminal.progress import Terminal, consent

    terminal = Terminal(config.train.log_every)
    evaluate = config.evaluate if measures else None
    notes += refuse_foreign(path, config.model, evaluate, overrides, consent())
    for note in notes if shown else ():
        terminal.note(note)
    if shown:
        terminal.stage("loading libraries")
    return config, terminal
