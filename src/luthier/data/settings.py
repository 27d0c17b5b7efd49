"""The data block of a recipe: where rows come from, how they are split, and what is done with bad rows."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from luthier.core.registry import AUTO, Config, Count, Seed
from luthier.data.formats.base import FORMATS, Format
from luthier.rendering.row import LongRow


def _place(value: str | float | None) -> str | float | None:
    """Nothing is read from a URL, and one may hold a password, which recipe and reports would keep."""
    if isinstance(value, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value):
        raise ValueError("this is a URL: download the file and give its path, or a hub id (OWNER/NAME)")
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError(f"should be a file, the name of a split, a share between 0 and 1, or none, not {value}")
    return value


def _none_is_none(value: object) -> object:
    return None if value in ("none", "auto") else value


class MixSource(Config):
    """One more set of rows to train on."""

    path: Annotated[str, AfterValidator(_place)]
    """As data.path."""
    split: str = "train"
    """Split of a folder or hub id to train on."""
    subset: str = ""
    """Configuration name of a hub data set, or the name of a data set in dataset_info.json."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a csv or tsv file without a header line."""
    format: Annotated[Annotated[Format, FORMATS] | None, AUTO] = None
    """How rows become examples; auto finds it from the names and the content of the columns, and asks
    where that is ambiguous. `luthier list formats` shows all."""
    weight: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    """How often the rows appear in an epoch: 2 has each twice, 0.5 has half of them, chosen by the seed."""


class DataConfig(MixSource):
    """Where the rows come from, and what happens to rows that cannot be used as they are."""

    aliases: ClassVar[dict[str, str]] = {"val_size": "validation", "max_samples": "limit"}

    path: Annotated[str, AfterValidator(_place)] = ""
    """File (jsonl, json, csv, tsv, txt, also with .gz or .zst after it; parquet, arrow, feather), folder of split
    files or their shards (train.jsonl, train-00000-of-00002.parquet), folder with LLaMA-Factory's
    dataset_info.json, hub id, or builtin:reviews."""
    hub: Literal["huggingface", "modelscope"] = "huggingface"
    """Where a hub id is looked up."""
    mix: tuple[MixSource, ...] = ()
    """More sets to train on beside data.path: [{path: FILE, weight: 0.5}]; each may have split, subset and format."""
    validation: Annotated[str | float | None, AUTO, AfterValidator(_place)] = None
    """A file, the name of a split, a share of the training rows, or none; auto takes a split that comes with
    the data, else 10 % of the training rows. Beside a dataset_info.json also the name of a data set there."""
    test: Annotated[str | float | None, BeforeValidator(_none_is_none), AfterValidator(_place)] = None
    """Rows that are measured once, at the end, and decide nothing before (validation rows choose the best weights):
    a file, the name of a split, or a share of the training rows; none has no such rows, and the end is measured on
    the validation rows."""
    stratify: Annotated[bool | None, AUTO] = None
    """Where a share is held out: hold out the same share of each label, and a label with one row trains; auto does
    so where every row has a label."""
    group: str = ""
    """Where a share is held out: rows with the same value in this column stay on one side (a speaker, a document)."""
    limit: Count | None = None
    """Use only this many training rows, taken after shuffling; none takes all."""
    validation_limit: Count | None = None
    """Use only this many validation rows, taken after shuffling; none takes all."""
    seed: Seed = 42
    """Seed of the shuffle before a limit or a split."""
    deduplicate: Literal["none", "exact"] = "none"
    """exact keeps the first of examples that are the same, and the others in refused.jsonl."""
    on_leak: Literal["warn", "drop", "stop"] = "warn"
    """A separate validation row that is a training row too: warn, stop, or drop it from the training
    rows, so that the score stays comparable."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that cannot be read: stop, or skip it, count it and keep it in refused.jsonl."""
    on_long_row: Annotated[LongRow | None, AUTO] = None
    """A row over train.max_length; auto splits for task complete, where nothing is lost, and stops otherwise."""
    streaming: bool = False
    """Read the training rows while the run trains, for data too large to read first; needs train.steps. Validation
    and test rows are read first, from a split or file of their own."""
    shuffle_buffer: Count = 10_000
    """With streaming: examples read ahead, from which each step draws at random."""
    workers: Annotated[Annotated[int, Field(gt=0, le=1024)] | None, AUTO] = None
    """Processes that tokenize; auto is one per processor where there are many rows."""
    cache: bool = True
    """Keep what was read and tokenized for the next start, unless it is small: in $LUTHIER_CACHE,
    or luthier in the user's cache folder. `luthier cache` shows it."""
