"""YAML and overrides: read, and what is wrong with them said by key."""

import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError

from luthier.core.errors import ConfigError, InputError, did_you_mean
from luthier.core.registry import Family, P
from luthier.core.strict_yaml import parse_value, parse_yaml
from luthier.data.read import looks_like_file
from luthier.exports.base import EXPORTS, Export
from luthier.runs.remote import first_bytes, is_url

RecipeSource: TypeAlias = Path | str
"""A YAML file, or its URL as text."""
SHORT = {"model": "path", "data": "path"}
"""`model=DIR` and `data=FILE` are short for `model.path` and `data.path`."""
PATHS = ("model", "path"), ("data", "path"), ("data", "validation"), ("data", "test")
"""Block and key of what may be a file or a folder."""
MOST_BYTES = 2**20
"""Most bytes of a recipe; reading a larger file as one would take minutes."""
MOST_PARTS = 8
"""Most parts of a key such as evaluate.judge.url."""


def parse_export(name: str, settings: Sequence[str]) -> Export:
    """A form to deploy with its `key=value` settings; ConfigError names what is wrong."""
    return parse_member(EXPORTS, name, settings)


def parse_member(family: Family[P], name: str, settings: Sequence[str]) -> P:
    """A member of a family that `--to NAME` names, with its `key=value` settings; ConfigError names what is wrong."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"{setting!r} is no setting", fix=f"KEY=VALUE; luthier explain {family.kind} {name}")
        try:
            values[key] = parse_value(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--to {name}", [f"{key}: {getattr(error, 'problem', None) or error}"]) from None
    found = family.get(name)
    try:
        return found.model_validate(values)
    except ValidationError as error:
        wrong = [_problem_text(dict(each), sorted(found.model_fields)) for each in error.errors()]
        raise ConfigError(f"--to {name}", wrong) from None


def recipe_source(given: str | os.PathLike[str]) -> RecipeSource:
    """The recipe that is named so: a URL stays text."""
    return str(given) if is_url(given) else Path(given)


def read_yaml(source: RecipeSource) -> dict[str, Any]:
    """The mapping in a YAML file; InputError names file and line."""
    content = _content(source, MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        what = f"{source} holds over {MOST_BYTES // 2**20} MiB, which is too much for a recipe"
        raise InputError(what, fix="a YAML recipe; data goes behind --data")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: no valid YAML: {error}") from None
    return yaml_mapping(text, str(source))


def yaml_mapping(text: str, source: str) -> dict[str, Any]:
    """The mapping that a recipe's text holds; InputError names `source` and the line."""
    try:
        data = parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source}: no valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{source}: a recipe is a mapping of keys such as model, data, method, train")
    return {
        key: {SHORT[key]: value} if key in SHORT and isinstance(value, str) else value for key, value in data.items()
    }


def _content(source: RecipeSource, most: int) -> bytes:
    """At most so many bytes of a recipe. InputError where there is none."""
    content, near = None, ""
    if isinstance(source, str):
        content = first_bytes(source, most)
    elif source.is_file():
        with source.open("rb") as file:
            content = file.read(most)
    elif source.parent.is_dir():
        near = did_you_mean(source.name, [path.name for path in source.parent.glob("*.y*ml")])
    if content is None:
        raise InputError(f"{source}: no such recipe{near}", fix="give a YAML file, or key.path=value settings")
    return content


def relative_paths(recipe: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """A line for each relative path in the recipe of a URL that no override replaces.

    It would be the file of that name in the folder where the command happens to run.
    """
    typed = {override.partition("=")[0].strip() for override in overrides}
    typed |= {f"{block}.{key}" for block, key in SHORT.items() if block in typed}
    blocks = {name: value for name, value in recipe.items() if isinstance(value, dict)}
    named = [(f"{block}.{key}", blocks.get(block, {}).get(key)) for block, key in PATHS]
    mix = blocks.get("data", {}).get("mix")
    named += [("data.mix", one.get("path")) for one in (mix if isinstance(mix, list) else ()) if isinstance(one, dict)]
    return [
        f"{key}: {path} is relative, and a recipe at a URL lies in no folder; give an absolute path, or {key}=..."
        for key, path in named
        if key not in typed and isinstance(path, str) and looks_like_file(path) and not is_url(path)
        if not Path(path).expanduser().is_absolute()
    ]


def assign(data: dict[str, Any], key_path: str, value: Any) -> None:
    """Set the value of `train.lr` in `data`. `method: lora` counts as `method: {name: lora}`, `data: FILE` as its path.

    InputError where the key has more parts than any key of a recipe.
    """
    *parents, last = key_path.strip().split(".")
    if len(parents) >= MOST_PARTS:
        raise InputError(f"a key has at most {MOST_PARTS} parts, this one has {len(parents) + 1}")
    for depth, key in enumerate(parents):
        inner = data.get(key)
        if inner is None:
            inner = {}
        elif isinstance(inner, str):
            inner = {SHORT.get(key, "name"): inner}
        elif not isinstance(inner, dict):
            raise InputError(f"{'.'.join(parents[: depth + 1])} is a value, not a block")
        data[key] = inner
        data = inner
    if not parents and last in SHORT and isinstance(value, str | int | float):
        data.setdefault(last, {})
        assign(data, f"{last}.{SHORT[last]}", str(value))
    elif not parents and last == "method" and isinstance(data.get("method"), dict) and isinstance(value, str):
        # Another method has other fields; the recipe's ones would be unknown keys there.
        data["method"] = {**data["method"], "name": value} if data["method"].get("name") == value else value
    else:
        data[last] = value


def problems(model: type[BaseModel], error: dict[str, Any]) -> list[str]:
    """A line for each mistake in one pydantic error: key, what is wrong, suggestion."""
    if error["type"] == "plugin_fields":
        prefix, context = _key(error["loc"]), error["ctx"]
        return [f"{prefix}.{_problem_text(dict(part), context['known'])}" for part in context["errors"]]
    said = _problem_text(error, fields_at(model, error["loc"][:-1]))
    if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:  # TrainingArguments, for one, has no blocks
        name = str(error["loc"][0])
        blocks = {key: _model_of(field.annotation) for key, field in model.model_fields.items()}
        meant = [f"{key}.{name}" for key, block in blocks.items() if block is not None and name in _spellings(block)]
        said = f"{name}: unknown key (did you mean {' or '.join(meant)}?)" if meant else said
    return [said]


def _spellings(block: type[BaseModel]) -> set[str]:
    return {*block.model_fields, *getattr(block, "aliases", ())}


def _problem_text(error: dict[str, Any], known: Sequence[str]) -> str:
    key, kind = _key(error["loc"]), error["type"]
    if kind == "extra_forbidden":
        name = str(error["loc"][-1])
        near = did_you_mean(name, known)
        return f"{key}: unknown key{near or ('; known are ' + ', '.join(known) if known else '')}"
    if kind == "missing":
        return f"{key}: is needed, and has no default"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    given = error.get("input")
    own_words = kind in ("value_error", "unknown_plugin") or not isinstance(given, str | int | float)
    shown, near = "" if own_words else f", not {given!r}", ""
    if kind == "literal_error" and isinstance(given, str):
        near = did_you_mean(given, re.findall(r"'([^']+)'", str(error.get("ctx", {}).get("expected", ""))))
    return f"{key}: {message}{shown}{near}" if key else f"{message}{shown}"


def _key(location: Sequence[Any]) -> str:
    """Dotted path; pydantic adds names of union members, which are no keys."""
    return ".".join(
        str(part) for part in location if not re.search(r"[\[\]()]|^(str|float|int)$|^constrained", str(part))
    )


def fields_at(model: Any, location: Sequence[Any]) -> list[str]:
    """Names of the keys allowed in the block at `location`, aliases left out."""
    for part in location:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = _model_of(field.annotation) if field is not None else None
    return sorted(model.model_fields) if model is not None else []


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        return next((found for part in typing.get_args(annotation) if (found := _model_of(part))), None)
    return None
