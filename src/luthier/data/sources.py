"""Where the rows of each side come from, and what that excludes."""

from collections.abc import Iterator
from typing import Literal

from luthier.core.errors import InputError
from luthier.data.dataset_info import named, resolve_name
from luthier.data.file_types.base import RawRow
from luthier.data.read import looks_like_file, read_rows, suffixes, validation_split
from luthier.data.reading.files import kind_of
from luthier.data.settings import DataConfig

HeldOut = Literal["validation", "test"]


def open_rows(config: DataConfig, *, streaming: bool = False) -> Iterator[RawRow]:
    """The rows of one set."""
    split, subset, columns = config.split, config.subset, config.columns
    return read_rows(config.path, split=split, subset=subset, hub=config.hub, streaming=streaming, columns=columns)


def source_name(config: DataConfig) -> str:
    """The name of a set in messages and data.json."""
    return config.path if config.path.endswith(suffixes()) else f"{config.path} ({config.split})"


def other_source(recipe: DataConfig, config: DataConfig, side: HeldOut) -> DataConfig | None:
    """Where the rows of this side come from, or None where they are split off the training rows, or there are none.

    `recipe` is the block as written, `config` the same with a name of dataset_info.json resolved.
    """
    wanted = config.validation if side == "validation" else config.test
    if wanted is None and side == "validation":
        found = validation_split(config.path, config.hub, config.subset)
        return config.model_copy(update={"split": found}) if found else None
    if wanted is None or wanted == "none" or isinstance(wanted, float):
        return None
    if named(recipe, wanted):
        made, _ = resolve_name(recipe.model_copy(update={"subset": wanted, "limit": recipe.validation_limit}))
        return made.model_copy(update={"validation_limit": made.limit})
    if wanted.startswith("builtin:"):
        return config.model_copy(update={"path": wanted, "split": "heldout"})
    one_file = kind_of(config.path) == "file"
    if looks_like_file(wanted) or (one_file and kind_of(wanted)):
        return config.model_copy(update={"path": wanted, "split": "train", "subset": ""})
    if one_file:
        raise InputError(
            f"data.{side}={wanted}: {config.path} is one file, which has no splits",
            fix=f"give a file with {side} rows, a share such as 0.1, or none",
        )
    return config.model_copy(update={"split": wanted})


def refuse_split_settings(config: DataConfig, other: DataConfig | None) -> None:
    """Refuse data.group and data.stratify where no share is held out: they would silently do nothing."""
    if isinstance(config.test, float) or (other is None and config.validation != "none"):
        return
    why = f"the validation rows come from {source_name(other)}" if other else "data.validation is none"
    for key in ("group", "stratify"):
        if getattr(config, key):
            raise InputError(
                f"data.{key}: {why}, so no share is held out", fix=f"leave data.{key} out, or data.validation=0.1"
            )
