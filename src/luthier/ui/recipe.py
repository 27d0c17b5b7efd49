"""The recipe that the page makes: its text is the only state, and what is changed by a form is written into it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from luthier.core import files
from luthier.core.errors import ConfigError, InputError
from luthier.core.shell import setting, shell_line
from luthier.core.strict_json import to_json
from luthier.recipe.config import RunConfig
from luthier.recipe.identity import key_paths
from luthier.recipe.parse import assign, yaml_mapping

NAME = re.compile(r"[\w][\w. -]{0,80}")
"""Of a recipe or run that the page makes: one part of a path."""
WHERE = "recipe"


def mapping_of(text: str, changes: Mapping[str, Any] = {}) -> dict[str, Any]:
    """What the text holds, with keys changed (None takes one out); an empty text is an empty recipe."""
    data = yaml_mapping(text, WHERE) if text.strip() else {}
    for key, value in changes.items():
        _put(data, key, value)
    return data


def config_of(text: str, changes: Mapping[str, Any] = {}) -> RunConfig:
    """The run of a recipe with keys changed; ConfigError with all of its mistakes."""
    return RunConfig.of(mapping_of(text, changes), source=WHERE)


def checked_text(text: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The text with keys changed (None takes one out), what is wrong with it, and its command.

    Returns {text, problems, notes, settings, command}.
    Without a change the text stays as it was typed, with its comments. `command` trains the same without a file.
    """
    problems: list[str] = []
    notes: list[str] = []
    settings: dict[str, Any] = {}
    command = ""
    try:
        data = mapping_of(text, changes)
        if changes:
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True) if data else ""
        settings = key_paths(RunConfig.of(data, notes=notes, source=WHERE).model_dump(mode="json"))
        command = as_command(data)
    except ConfigError as error:
        problems = error.problems
    except InputError as error:
        problems = [error.message]
    return {"text": text, "problems": problems, "notes": notes, "settings": settings, "command": command}


def as_command(data: Mapping[str, Any]) -> str:
    """The command that trains what a recipe says, with each of its keys on the line; JSON is YAML."""
    given = key_paths(data).items()
    words = [
        setting(key, value) if isinstance(value, str) else f"{key}={to_json(value)}" for key, value in given if key
    ]
    return shell_line("luthier", "train", *words)


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    if value is not None:
        assign(data, key, value)
        return
    *parents, last = key.split(".")
    places = [data]
    for parent in parents:
        inner = places[-1].get(parent)
        if not isinstance(inner, dict):
            return
        places.append(inner)
    places[-1].pop(last, None)
    for parent, place in zip(reversed(parents), reversed(places[:-1]), strict=True):
        if not place[parent]:  # a block without keys says nothing
            del place[parent]


def run_name(name: str) -> str:
    """The name, where it is one part of a path; InputError for any other."""
    if not NAME.fullmatch(name) or name.endswith((" ", ".")):
        raise InputError(
            f"{name[:100]!r} is no name for a run", fix="letters, digits, blanks, dots, dashes: 80 of them at most"
        )
    return name


def save(text: str, name: str, root: Path) -> tuple[Path, list[str]]:
    """Write a recipe beside the runs, with the folder of its run in it: its file, and what comes after `luthier`.

    ConfigError where it has mistakes, InputError where a run of that name is there already.
    """
    folder, file = root / run_name(name), root / "recipes" / f"{run_name(name)}.yaml"
    if folder.exists():
        raise InputError(f"there is a run {name!r} already", fix="another name")
    config_of(text)
    data = mapping_of(text)
    data["run"] = str(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(file, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    return file, ["train", str(file)]


def terminal_command(file: Path) -> str:
    """What starts the run of a saved recipe in a terminal."""
    return shell_line("luthier", "train", file)
