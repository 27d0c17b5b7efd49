"""Where the validation rows come from, and what that rules out."""

from __future__ import annotations

from typing import Literal

from luthier.core.errors import InputError
from luthier.data.dataset_info import named, resolve
from luthier.data.read import SUFFIXES, looks_like_file, validation_split
from luthier.data.reading.files import kind_of
from luthier.data.settings import DataConfig


def source_name(path: str, split_name: str) -> str:
    """How messages and data.json call a source."""
    return path if path.endswith(SUFFIXES) else f"{path} ({split_name})"


def other_source(recipe: DataConfig, config: DataConfig, side: Literal["validation", "test"]) -> DataConfig | None:
    """Where the rows of this side come from, or None where they are parted off the training rows, or there are none.

    `recipe` is the block as written, `config` the same with a name of dataset_info.json resolved.
    """
    wanted = config.validation if side == "validation" else config.test
    if wanted is None and side == "validation":
        brought = validation_split(config.path, config.hub, config.subset)
        return config.model_copy(update={"split": brought}) if brought else None
    if wanted is None or wanted == "none" or isinstance(wanted, float):
        return None
    if named(recipe, wanted):
        made, _ = resolve(recipe.model_copy(update={"subset": wanted, "limit": recipe.validation_limit}))
        return made.model_copy(update={"validation_limit": made.limit})
    if wanted.startswith("builtin:"):
        return config.model_copy(update={"path": wanted, "split": "heldout"})
    if looks_like_file(wanted) or (kind_of(config.path) == "file" and kind_of(wanted)):
        return config.model_copy(update={"path": wanted, "split": "train", "subset": ""})
    if kind_of(config.path) == "file":
        raise InputError(
            f"data.{side}={wanted}: {config.path} is one file, which has no splits",
            fix=f"give a file with {side} rows, a share such as 0.1, or none",
        )
    return config.model_copy(update={"split": wanted})


def refuse_split_settings(config: DataConfig, other: DataConfig | None) -> None:
    """data.group and data.stratify say how a share is held out; where none is, they would do nothing, unseen."""
    if isinstance(config.test, float) or (other is None and config.validation != "none"):
        return
    why = (
        f"the validation rows come from {source_name(other.path, other.split)}" if other else "data.validation is none"
    )
    for key, given in (("group", config.group), ("stratify", config.stratify)):
        if given:
            raise InputError(
                f"data.{key}: {why}, so no share is held out", fix=f"leave data.{key} out, or data.validation=0.1"
            )
