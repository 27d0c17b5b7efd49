"""`luthier init`: the questions, with defaults from what lies in the folder, and the recipe with its comments."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.prompt import Prompt

from luthier.cli.terminal.console import console, safe
from luthier.cli.terminal.progress import Terminal
from luthier.core.errors import InputError
from luthier.core.language import translated
from luthier.core.shell import setting, shell_line
from luthier.core.strict_json import to_json
from luthier.core.strict_yaml import parse_value
from luthier.data.detect import Opened, open_set, task_for
from luthier.data.read import file_type_of
from luthier.methods.base import METHODS
from luthier.recipe.config import RunConfig
from luthier.recipe.identity import run_path

LIKELY = (".jsonl", ".csv", ".tsv", ".parquet", ".json")
"""Suffixes of files that may be data."""
RECIPE = """\
# {comment_train}
# {comment_explain}

model: {model}  # {comment_model}

data:
  path: {data}  # {comment_data}
{format}
task: {task}  # {comment_task}

method: {method}  # {comment_method}

train:
  epochs: 3  # {comment_epochs}
  batch_size: 16  # {comment_batch}
  lr: auto  # {comment_lr}

run: {run}  # {comment_run}
"""
"""The recipe; its comments are in the language of the user."""


def write_recipe(path: Path, given: Mapping[str, str | None]) -> None:
    """Ask for what is not given, write the recipe, and print the commands that follow.

    InputError where the file is there, where an answer is wrong, or where nobody can be asked.
    """
    if path.exists():
        raise InputError(f"{path} is there already, and nothing is overwritten", fix="luthier init ANOTHER_NAME.yaml")
    missing = [f"--{key}" for key in ("data", "model", "method", "run") if given[key] is None]
    if missing and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError(f"nobody can be asked for {', '.join(missing)} here", fix="give them as options")
    data = given["data"] or _ask("Data: a file, a folder, a hub id, or builtin:NAME", _data_here())
    opened = _opened(data)
    model = given["model"] or _ask("Base model: a folder, a hub id, or builtin", _model_here())
    method = given["method"] or _ask("Method; luthier choose recommends one", "lora")
    METHODS.get(method)
    words = {"data": data, "model": model, "method": method, "task": given["task"] or _task(opened)}
    config = RunConfig.load(None, [setting(key, value) for key, value in words.items()])
    run = given["run"] or _ask("Folder of the run", str(run_path(config, path)))
    text = recipe_text({**words, "run": run}, opened)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    RunConfig.load(path)
    console.print(f"  written: [bold]{safe(str(path))}[/]")
    console.print(translated("next:"))
    for command in ("check", "plan", "train"):
        console.print(f"  [bold]{shell_line('luthier', command, path)}[/]", soft_wrap=True)


def recipe_text(words: Mapping[str, str], opened: Opened | None) -> str:
    """The recipe as YAML, with what is known of the data's rows."""
    about = {
        "train": "One run of Luthier. Train it, or resume it: luthier train FILE",
        "explain": "What a key does, and its other values: luthier explain train.lr",
        "model": "base model: a folder, a hub id, or builtin",
        "data": "some rows are held out to measure on; data.validation says which",
        "task": "what to learn; luthier list tasks",
        "method": "how to tune; luthier list methods, luthier choose",
        "epochs": "passes over the training rows",
        "batch": "rows of an optimizer step; memory does not depend on it",
        "lr": "learning rate; auto takes the method's own",
        "run": "folder of the run, with its report",
    }
    chosen = ""
    if opened is not None and opened.guessed:
        chosen = "  format:\n" + "".join(f"    {key}: {_yaml(value)}\n" for key, value in opened.format.spec().items())
    comments = {f"comment_{key}": translated(text) for key, text in about.items()}
    return RECIPE.format(**{key: _yaml(value) for key, value in words.items()}, **comments, format=chosen)


def _opened(data: str) -> Opened | None:
    """The format of the rows, if they are on this machine; else training finds it."""
    if not (Path(data).expanduser().exists() or data.startswith("builtin:")):
        if Path(data).suffix and file_type_of(data) is not None:
            raise InputError(f"{data}: no such file", fix="give a file, a folder, a hub id, or builtin:NAME")
        return None
    config = RunConfig.load(None, [setting("data", data)])
    with Terminal() as terminal:
        opened = open_set(config.data, terminal)
    console.print(f"  [dim]{safe(translated(f'format {opened.format.name}: {opened.why}'))}[/]")
    return opened


def _task(opened: Opened | None) -> str:
    return "auto" if opened is None else (opened.task or task_for(opened.format)).name


def _ask(question: str, default: str) -> str:
    return Prompt.ask(f"[bold]?[/] {translated(question)}", console=console, default=default).strip()


def _data_here() -> str:
    """The first data file of the folder, the likeliest type first, or the built-in reviews."""
    found = (path.name for suffix in LIKELY for path in sorted(Path().glob(f"*{suffix}")))
    return next(found, "builtin:reviews")


def _model_here() -> str:
    """The first model folder beside the recipe, or the built-in base."""
    found = sorted(path.parent for path in Path().glob("*/config.json"))
    return str(found[0]) if found else "builtin"


def _yaml(value: object) -> str:
    """A value as YAML has it."""
    plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and parse_value(value) == value
    return str(value) if plain else to_json(value, ensure_ascii=False)
