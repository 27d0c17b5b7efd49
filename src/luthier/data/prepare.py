"""From the data block of a recipe to training and validation rows, with an account of every row."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from luthier.config import DataConfig
from luthier.data.example import Example, RowError
from luthier.data.formats.base import FORMATS, Format
from luthier.data.read import SUFFIXES, RawRow, looks_like_file, read_rows, validation_split
from luthier.data.template import Template
from luthier.errors import DataError, InputError
from luthier.tasks.base import LongRow, Row, Task

DETECTION_ROWS = 50
VALIDATION_SHARE = 0.1


@dataclass(slots=True)
class Refusal:
    """A row that was left out, whole, with the reason."""

    where: str
    reason: str
    row: Any


@dataclass(slots=True)
class Part:
    """The account of one side (training or validation). read = kept + refused + over the limit."""

    source: str = ""
    read: int = 0
    refused: int = 0
    over_limit: int = 0
    kept: int = 0
    windows: int = 0
    """Rows after long texts were split."""
    cut: int = 0
    """Rows from which a truncation policy took tokens."""
    cut_tokens: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Prepared:
    """Examples and rows of both sides, and what was done to get there."""

    format: Format
    format_why: str
    task: Task
    examples: list[Example]
    validation_examples: list[Example]
    refusals: list[Refusal]
    train: Part
    validation: Part
    fingerprint: str
    """SHA-256 over the examples of both sides, in order: equal data, equal fingerprint."""
    rows: list[Row] = field(default_factory=list)
    validation_rows: list[Row] = field(default_factory=list)
    validation_owner: list[int] = field(default_factory=list)
    """For each validation row the number of the example it comes from."""
    template_source: str = ""

    def account(self) -> dict[str, Any]:
        """What goes into data.json."""
        return {
            "format": self.format.spec(),
            "format_why": self.format_why,
            "task": self.task.spec(),
            "template": self.template_source,
            "fingerprint": self.fingerprint,
            "train": asdict(self.train),
            "validation": asdict(self.validation),
        }


def load(config: DataConfig, task: Task | None) -> Prepared:
    """Read all rows and part them into training and validation examples. Needs no tokenizer.

    DataError names file, row and mend; rows left out by policy are in `refusals`.
    """
    if not config.path:
        raise InputError("no data given", mend="data=FILE, a hub id, or data=builtin:reviews")
    refusals: list[Refusal] = []
    train, validation = Part(source=_name(config.path, config.split)), Part()
    raw = read_rows(config.path, split=config.split, subset=config.subset, hub=config.hub)
    first = _first(raw)
    if not first:
        raise DataError(f"{config.path}: there are no rows", mend="give data with at least one row")
    reader, why = _format(config, first)
    examples = _read(itertools.chain(first, raw), reader, config, refusals, train)

    other = _validation_source(config)
    if other is None and config.validation != "none":
        share = config.validation if isinstance(config.validation, float) else VALIDATION_SHARE
        examples, held_out = split(examples, share, config.seed)
        validation.source = f"{share:.0%} of the training rows, seed {config.seed}"
        validation.read = len(held_out)
        train.read -= len(held_out)
    elif other is not None:
        path, name = other
        validation.source = _name(path, name)
        raw = read_rows(path, split=name, subset=config.subset, hub=config.hub)
        held_out = _read(raw, reader, config, refusals, validation)
    else:
        held_out = []

    examples = _take(examples, config.limit, config.seed, train)
    held_out = _take(held_out, config.validation_limit, config.seed, validation)
    if not examples:
        raise DataError(f"{config.path}: no row is left to train on, {len(refusals)} were refused")
    task = (task or _task_for(reader)).fitted(examples)
    for part, side in ((train, examples), (validation, held_out)):
        part.labels = dict(Counter(example.label for example in side if example.label is not None).most_common(200))
    return Prepared(
        format=reader, format_why=why, task=task, examples=examples, validation_examples=held_out,
        refusals=refusals, train=train, validation=validation, fingerprint=_fingerprint(examples, held_out),
    )  # fmt: skip


def encode(data: Prepared, template: Template, config: DataConfig, max_length: int) -> None:
    """Fill `data.rows` and `data.validation_rows` with tokens; rows over the limit follow data.on_long_row."""
    data.template_source = template.source
    policy = config.on_long_row or ("split" if data.task.splits_long_rows else "stop")
    if policy == "split" and not data.task.splits_long_rows:
        raise InputError(
            f"data.on_long_row: task {data.task.name} cannot split a row",
            mend="data.on_long_row=truncate_prompt, truncate_answer, skip or stop",
        )
    data.rows, kept, _ = _encode(data, data.examples, template, config, max_length, policy, data.train)
    data.examples = kept
    data.validation_rows, data.validation_examples, data.validation_owner = _encode(
        data, data.validation_examples, template, config, max_length, policy, data.validation
    )
    if not data.rows:
        raise DataError(
            f"{config.path}: no row is left to train on, {len(data.refusals)} were refused; "
            f"the first: {data.refusals[0].where}: {data.refusals[0].reason}"
        )


def split(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Part off `share` of the examples by a seeded shuffle; equal examples stay on one side, so none leaks."""
    if len(examples) < 2:
        return examples, []
    groups: dict[Any, list[Example]] = {}
    for example in examples:
        groups.setdefault(replace(example, where=""), []).append(example)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted = max(1, round(len(examples) * share))
    held_out: list[Example] = []
    rest: list[Example] = []
    for group in order:
        (held_out if len(held_out) + len(group) <= wanted else rest).extend(group)
    return rest, held_out


def _name(path: str, split_name: str) -> str:
    return path if path.endswith(SUFFIXES) else f"{path} ({split_name})"


def _validation_source(config: DataConfig) -> tuple[str, str] | None:
    """(path, split) of separate validation rows, or None where they are parted off the training rows."""
    wanted = config.validation
    if wanted is None:
        brought = validation_split(config.path, config.hub, config.subset)
        return (config.path, brought) if brought else None
    if wanted == "none" or isinstance(wanted, float):
        return None
    if looks_like_file(wanted) or wanted.startswith("builtin:"):
        return (wanted, "heldout" if wanted.startswith("builtin:") else "train")
    return (config.path, wanted)


def _first(raw: Iterator[RawRow]) -> list[RawRow]:
    """As many rows as it takes to have enough to tell the format from; the others stay unread."""
    rows: list[RawRow] = []
    good = 0
    while good < DETECTION_ROWS and (row := next(raw, None)) is not None:
        rows.append(row)
        good += not row.problem
    return rows


def _format(config: DataConfig, raw: Sequence[RawRow]) -> tuple[Format, str]:
    """The format of the recipe, or the most particular one whose columns the first rows have."""
    if config.format is not None:
        return config.format, "given in the recipe"
    sample = [row for row in raw if not row.problem]
    if not sample:
        raise DataError(f"{raw[0].where}: {raw[0].problem}", mend="mend the row; no row of this data can be read")
    known = sorted((FORMATS.get(name)() for name in FORMATS.names()), key=lambda reader: reader.order)
    for reader in known:
        hits = sum(reader.matches(row.values) for row in sample)
        if hits > len(sample) / 2:
            columns = ", ".join(map(str, sample[0].values))
            return reader, f"{hits} of the first {len(sample)} rows have its columns ({columns})"
    columns = ", ".join(map(str, sample[0].values))
    raise DataError(
        f"{sample[0].where}: the columns fit no known format: {columns}",
        mend=f"name the format and its columns, for example data.format.name=alpaca data.format.instruction="
        f"{next(iter(sample[0].values), 'COLUMN')} data.format.output=COLUMN; formats: {', '.join(FORMATS.names())}",
    )


def _task_for(reader: Format) -> Task:
    from luthier.tasks.base import TASKS

    return TASKS.parse({"text": "complete", "classification": "classify"}.get(reader.name, "chat"))


def _read(
    raw: Iterable[RawRow], reader: Format, config: DataConfig, refusals: list[Refusal], part: Part
) -> list[Example]:
    examples = []
    for row in raw:
        part.read += 1
        try:
            if row.problem:
                raise RowError(row.problem)
            examples.append(replace(reader.read(row.values), where=row.where))
        except RowError as error:
            if config.on_bad_row == "stop":
                mend = error.mend or "mend the row, or leave such rows out with data.on_bad_row=skip"
                raise DataError(f"{row.where}: {error.reason}", mend=mend) from None
            part.refused += 1
            refusals.append(Refusal(row.where, error.reason, row.values))
    return examples


def _take(examples: list[Example], limit: int | None, seed: int, part: Part) -> list[Example]:
    """The first `limit` examples of a seeded shuffle: data sorted by label must not give one class."""
    if limit is None or len(examples) <= limit:
        return examples
    part.over_limit = len(examples) - limit
    order = list(examples)
    random.Random(seed).shuffle(order)
    return order[:limit]


def _encode(
    data: Prepared, examples: list[Example], template: Template, config: DataConfig,
    max_length: int, policy: LongRow, part: Part,
) -> tuple[list[Row], list[Example], list[int]]:  # fmt: skip
    rows: list[Row] = []
    kept: list[Example] = []
    owner: list[int] = []
    for example in examples:
        try:
            new = data.task.encode(example, template, max_length, policy)
            if not any(row.learned for row in new):
                raise RowError("no token of the row carries loss")
        except RowError as error:
            skip = policy == "skip" if error.kind == "long" else config.on_bad_row == "skip"
            if not skip:
                others = _others(data, examples, template, max_length, policy) if error.kind == "long" else ""
                raise DataError(f"{example.where}: {error.reason}{others}", mend=error.mend or _mend(error)) from None
            part.refused += 1
            data.refusals.append(Refusal(example.where, error.reason, _plain(example)))
            continue
        owner += [len(kept)] * len(new)
        kept.append(example)
        rows += new
    part.kept, part.windows = len(kept), len(rows)
    part.cut = sum(row.cut > 0 for row in rows)
    part.cut_tokens = sum(row.cut for row in rows)
    part.tokens = sum(len(row.ids) for row in rows)
    part.learned = sum(row.learned for row in rows)
    part.longest = max((len(row.ids) for row in rows), default=0)
    return rows, kept, owner


def _others(data: Prepared, examples: list[Example], template: Template, max_length: int, policy: LongRow) -> str:
    """How many rows are over the limit in all: whoever raises it should need to do so once."""
    long = []
    for example in examples:
        try:
            data.task.encode(example, template, max_length, policy)
        except RowError as error:
            if error.kind == "long":
                long += [max(len(row.ids) for row in data.task.encode(example, template, 2**40, policy))]
    return f"; {len(long)} of {len(examples)} rows are too long, the longest has {max(long)} tokens"


def _mend(error: RowError) -> str:
    if error.kind == "long":
        return "raise train.max_length, or data.on_long_row=truncate_prompt (keeps the answer), skip or truncate_answer"
    return "mend the row, or leave such rows out with data.on_bad_row=skip"


def _plain(example: Example) -> dict[str, Any]:
    return {key: value for key, value in asdict(example).items() if value and key != "where"}


def _fingerprint(*sides: list[Example]) -> str:
    digest = hashlib.sha256()
    for side in sides:
        for example in side:
            digest.update(json.dumps(_plain(example), ensure_ascii=False, sort_keys=True).encode())
        digest.update(b"\n--\n")
    return digest.hexdigest()
