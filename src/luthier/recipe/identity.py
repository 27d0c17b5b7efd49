"""Which run a recipe is: its folder, and whether a folder holds a run of this recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.core.errors import InputError
from luthier.core.files import write_text
from luthier.core.shell import shell_line
from luthier.recipe.config import RunConfig
from luthier.recipe.parse import RecipeSource
from luthier.runs.folder import RunFolder, checked
from luthier.runs.provenance import environment
from luthier.runs.remote import is_url, working_folder

_TRAIN = "train.log_every", "train.keep", "train.on_nan", "train.track"
_RANKS = "train.processes", "train.parallel", "train.offload"
MAY_CHANGE = ("run", *_TRAIN, *_RANKS, "data.workers", "data.cache", "evaluate")
"""Keys and blocks that another value of which leaves the run the same."""


def _changed(before: RunConfig, now: RunConfig) -> str:
    """A line for each key that makes `now` another run than `before`."""
    old, new = key_paths(before.model_dump(mode="json")), key_paths(now.model_dump(mode="json"))
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    matters = [key for key in changed if not any(f"{key}.".startswith(f"{free}.") for free in MAY_CHANGE)]
    return "".join(f"\n  - {key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in matters)


def run_path(config: RunConfig, recipe: RecipeSource | None) -> Path:
    """`run=DIR`, or runs/<recipe or data>-<method>; for a URL the folder in which this machine works on it."""
    return (
        working_folder(config.run)
        if is_url(config.run)
        else Path(config.run or f"runs/{_stem(config, recipe)}-{config.method.name}")
    )


def local_path(what: str, config: RunConfig, recipe: RecipeSource | None) -> Path:
    """`run=DIR` or `path_beside`, for what is no run that trains; InputError where `run` is a URL."""
    if is_url(config.run):
        raise InputError(f"run: {config.run} is a URL, and only a run of luthier train works at one", fix="run=DIR")
    return Path(config.run) if config.run else path_beside(what, config, recipe)


def path_beside(what: str, config: RunConfig, recipe: RecipeSource | None) -> Path:
    """runs/<what>-<recipe or data>, for a check or a comparison: beside the runs, which begin in an empty folder."""
    return Path("runs") / f"{what}-{_stem(config, recipe)}"


def _stem(config: RunConfig, recipe: RecipeSource | None) -> str:
    data = "-".join(filter(None, (Path(config.data.path.replace(":", "-")).stem or "run", config.data.subset)))
    return Path(recipe).stem if recipe else data


def key_paths(value: Any, prefix: str = "") -> dict[str, Any]:
    """A recipe with the whole path of each key: {"train.lr": 0.001}."""
    if not isinstance(value, dict):
        return {prefix.removeprefix("."): value}
    return {name: leaf for key, inner in value.items() for name, leaf in key_paths(inner, f"{prefix}.{key}").items()}


def read_recipe(folder: RunFolder, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe of the run, with `overrides`; InputError where it was edited since the run was started."""
    now, started = RunConfig.load(folder.recipe, overrides), folder.ledger.read()["recipe"]
    if started is not None:
        try:
            changed = _changed(RunConfig.model_validate(started), now)
        except ValidationError as error:
            raise InputError(f"{folder.ledger.path}: 'recipe' is not valid: {error}") from None
        if changed:
            raise InputError(
                f"{folder.recipe} was edited after the run was started:{changed}",
                fix=f"put it back, or start another run: {shell_line('luthier', 'train', folder.recipe, 'run=DIR')}",
            )
    return now


def with_found_formats(folder: RunFolder, config: RunConfig) -> RunConfig:
    """The recipe with the formats that were guessed or asked for when the run in this folder was started.

    They stand in its own recipe.yaml, and the command that started it leaves them open.
    """
    if not folder.recipe.is_file():
        return config
    started, data = read_recipe(folder), config.data
    changes: dict[str, Any] = {}
    if data.format is None and data.path == started.data.path:
        changes["format"] = started.data.format
    if len(data.mix) == len(started.data.mix):
        changes["mix"] = tuple(
            one.model_copy(update={"format": then.format}) if one.format is None and one.path == then.path else one
            for one, then in zip(data.mix, started.data.mix, strict=True)
        )
    task = started.task if config.task is None and changes.get("format") is not None else config.task
    return config.model_copy(update={"data": data.model_copy(update=changes), "task": task})


def holds_run_of(folder: RunFolder, config: RunConfig) -> bool:
    """Is there a run of this recipe? InputError names what differs where it is another's."""
    if not folder.recipe.is_file():
        return False
    if changed := _changed(read_recipe(folder), config):
        raise InputError(
            f"{folder.path} holds a run of another recipe:{changed}",
            fix="choose another folder with run=DIR, or delete this one",
        )
    return True


def begin_run(folder: RunFolder, config: RunConfig) -> bool:
    """Begin a run, or find one of the same recipe: True then. Only for who holds the folder."""
    there = holds_run_of(folder, config)
    if not there:
        folder.ledger.begin(config.model_dump(mode="json"))
        folder.write_json(folder.environment, environment() | checked(config.evaluate))
        write_text(folder.recipe, config.dump())
    return there
