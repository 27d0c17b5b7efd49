"""Several sets of rows in one training, each with a weight: how often its rows appear in an epoch.

Weight 2 has every row twice in an epoch, weight 0.5 half of the rows once, the same ones in each epoch; an
epoch is all of that together. Weights count after rows are held out, so no copy of a held-out row trains,
and before data.limit.
"""

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.core.errors import InputError
from luthier.data.dataset_info import resolve_name
from luthier.data.settings import DataConfig
from luthier.data.store import Examples


@dataclass(slots=True)
class Portion:
    """Rows of one set in a mix: read + repeated = refused + duplicates + held out + by weight + rows."""

    source: str
    weight: float
    read: int = 0
    refused: int = 0
    duplicates: int = 0
    held_out: int = 0
    by_weight: int = 0
    """Rows left out by a weight below 1."""
    repeated: int = 0
    """Copies made by a weight above 1."""
    rows: int = 0
    """Rows of an epoch, before data.limit and data.on_leak."""
    format: dict[str, Any] = field(default_factory=dict)


def members(config: DataConfig) -> list[tuple[DataConfig, str]]:
    """The resolved data block of each set, with where its format comes from: data.path, then those of data.mix."""
    blocks = [resolve_name(config)]
    for one in config.mix:
        given = {name: getattr(one, name) for name in type(one).model_fields}
        blocks.append(resolve_name(config.model_copy(update=given)))
    places = [(block.path, block.split, block.subset) for block, _ in blocks]
    for place, (block, _) in zip(places, blocks, strict=True):
        if places.count(place) > 1:
            raise InputError(f"data.mix: {place[0]} is there twice", fix="name it once, with how often as its weight")
        if config.mix and block.limit != config.limit:
            why = f"data.mix: num_samples of {block.path} is not used in a mix"
            raise InputError(why, fix="give its share as the weight")
    return blocks


def weigh(sets: Sequence[range], examples: Examples, portions: Sequence[Portion], seed: int) -> Examples:
    """The rows of an epoch. `sets` has, for each portion, the numbers of its rows in the store, held out or not."""
    made = array("Q")
    for number, (one, portion) in enumerate(zip(sets, portions, strict=True)):
        rows = array("Q", (which for which in examples.numbers if which in one))
        whole = int(portion.weight)
        part = round((portion.weight - whole) * len(rows))
        more = sorted(random.Random(f"{seed}:{number}").sample(range(len(rows)), part))
        portion.held_out = len(one) - len(rows)
        portion.by_weight = 0 if whole else len(rows) - part
        portion.repeated = max(0, whole - 1) * len(rows) + (part if whole else 0)
        portion.rows = whole * len(rows) + part
        made += rows * whole + array("Q", (rows[i] for i in more))
    return Examples(examples.store, made)
