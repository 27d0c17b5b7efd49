"""A recipe from keyword arguments: they are its keys, and mistakes in them are those of the command line."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.api.rows import data_settings
from luthier.core.errors import InputError
from luthier.core.strict_json import to_json
from luthier.recipe.config import RunConfig
from luthier.recipe.consent import refuse_foreign
from luthier.recipe.parse import RecipeSource, recipe_source


@dataclass(frozen=True, slots=True)
class Given:
    """A recipe, and what it was made from."""

    config: RunConfig
    path: RecipeSource | None
    """The YAML file, or its URL, that was given as `recipe`."""
    overrides: list[str]
    """The keyword arguments, as they would be typed on the command line."""
    notes: list[str] = field(default_factory=list)
    """What was read under another spelling, and what code the recipe runs."""


def recipe_from(
    settings: Mapping[str, Any], recipe: str | os.PathLike[str] | None, *, allow_code: bool, measures: bool = True
) -> Given:
    """The recipe of these settings, over those of a YAML file; what is None was not given.

    ConfigError names all mistakes at once, DataError the row and column of data in memory that cannot be used.
    `measures` says whether the code that the recipe names for its evaluation would run.
    """
    path, notes = None if recipe is None else recipe_source(recipe), list[str]()
    given = {key: value for key, value in settings.items() if value is not None}
    if "data" in given:
        given["data"] = data_settings(given["data"])
    overrides = overrides_of(given)
    config = RunConfig.load(path, overrides, notes, source="the arguments")
    evaluate = config.evaluate if measures else None
    notes += refuse_foreign(path, config.model, evaluate, overrides, allow_code)
    return Given(config, path, overrides, notes)


def overrides_of(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings in blocks as `key.path=value`, whose values are JSON, which is YAML. InputError for what is neither."""
    return [override for key, value in settings.items() for override in _flat(f"{prefix}{key}", value)]


def _flat(key: str, value: Any) -> Iterator[str]:
    if "=" in key:
        raise InputError(f"{key!r} is no key of a recipe", fix="a name such as train, or a path such as train.lr")
    if not isinstance(value, Mapping):
        yield f"{key}={_text(key, value)}"
        return
    if key == "method" and "name" in value:  # first, for the other keys depend on it
        yield f"method={_text(key, value['name'])}"
        value = {inner: each for inner, each in value.items() if inner != "name"}
    for inner, each in value.items():
        yield from _flat(f"{key}.{inner}", each)


def _text(key: str, value: Any) -> str:
    """A value as YAML; numbers that are not finite keep their names, for the recipe to refuse."""
    return to_json(_value(key, value), ensure_ascii=False)


def _value(key: str, value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): _value(f"{key}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_value(key, inner) for inner in value]
    if callable(plain := getattr(value, "item", None)):  # a number of NumPy or torch
        return _value(key, plain())
    raise InputError(f"{key} is a {type(value).__name__}, which no recipe can hold", fix="give text or numbers")
