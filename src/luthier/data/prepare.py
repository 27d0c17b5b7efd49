"""From the data block of a recipe to training and validation rows, with an account of every row."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from luthier.data.detect import open_set, refuse_other_task, refuse_unlearned, task_for
from luthier.data.example import Example, RowError
from luthier.data.formats.base import Format, column
from luthier.data.mix import Portion, members, weigh
from luthier.data.read import RawRow, read_rows
from luthier.data.settings import DataConfig
from luthier.data.sources import refuse_split_settings, source_name, validation_source
from luthier.data.split import check_labels, leaks, split
from luthier.data.template import Template
from luthier.errors import DataError, InputError
from luthier.tasks.base import LongRow, Row, Task

VALIDATION_SHARE = 0.1


@dataclass(slots=True)
class Refusal:
    """A row that was left out, whole, with the reason."""

    where: str
    reason: str
    row: Any


@dataclass(slots=True)
class Part:
    """The account of one side. read + repeated = kept + refused + duplicates + by_weight + over_limit + leaks."""

    source: str = ""
    read: int = 0
    refused: int = 0
    duplicates: int = 0
    """Rows that were the same as an earlier one, left out by data.deduplicate."""
    by_weight: int = 0
    """Rows left out by a weight below 1 in a mix."""
    repeated: int = 0
    """Copies of rows made by a weight above 1 in a mix."""
    over_limit: int = 0
    leaks: int = 0
    """Training rows that were the same as a validation row, left out by data.on_leak."""
    in_training: int = 0
    """Validation rows that stand in the training rows too, before data.on_leak drops those."""
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
    portions: list[Portion] = field(default_factory=list)
    """The account of each set, where several are mixed or one has a weight."""
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
            "mix": [asdict(portion) for portion in self.portions],
            "train": asdict(self.train),
            "validation": asdict(self.validation),
        }


def load(config: DataConfig, task: Task | None) -> Prepared:
    """Read all rows and part them into training and validation examples. Needs no tokenizer.

    DataError names file, row and mend; rows left out by policy are in `refusals`.
    """
    if not config.path:
        raise InputError("no data given", mend="data=FILE, a hub id, or data=builtin:reviews")
    recipe, blocks = config, members(config)
    config, found = blocks[0]
    refusals: list[Refusal] = []
    train, validation = Part(source=" + ".join(source_name(block.path, block.split) for block, _ in blocks)), Part()
    raw, reader, why = open_set(config)
    given, task = task, task or task_for(reader)
    refuse_unlearned(reader, task)
    other = validation_source(recipe, config)
    if other is not None or config.validation == "none":
        refuse_split_settings(config, other)
    seen: dict[Example, str] = {}
    sets = [_read(raw, reader, config, refusals, train, seen)]
    portions = [_portion(config, reader, train)]
    for block, _ in blocks[1:]:
        raw, other_reader, _ = open_set(block)
        refuse_unlearned(other_reader, task)
        refuse_other_task(config, reader, block, other_reader, given)
        part = Part()
        sets.append(_read(raw, other_reader, block, refusals, part, seen))
        portions.append(_portion(block, other_reader, part))
        train.read, train.refused = train.read + part.read, train.refused + part.refused
        train.duplicates += part.duplicates
    examples = [example for one in sets for example in one]
    if other is not None:
        validation.source = source_name(other.path, other.split)
        raw = read_rows(other.path, split=other.split, subset=other.subset, hub=other.hub)
        held_out = _read(raw, other.format or reader, other, refusals, validation, {})
    else:
        examples, held_out = _part(examples, config, train, validation)

    if len(portions) > 1 or config.weight != 1:
        examples = weigh(sets, examples, portions, config.seed)
        train.by_weight = sum(portion.by_weight for portion in portions)
        train.repeated = sum(portion.repeated for portion in portions)
    else:
        portions = []
    examples = _take(examples, config.limit, config.seed, train)
    held_out = _take(held_out, (other or config).validation_limit, config.seed, validation)
    if other is not None:
        examples = _without_leaks(examples, held_out, config, refusals, train, validation)
    if not examples:
        raise DataError(f"{config.path}: no row is left to train on, {len(refusals)} were refused")
    task = task.fitted(examples)
    for part, side in ((train, examples), (validation, held_out)):
        part.labels = dict(Counter(example.label for example in side if example.label is not None).most_common(200))
    return Prepared(
        format=reader, format_why=found or why, task=task, examples=examples, validation_examples=held_out,
        refusals=refusals, train=train, validation=validation, fingerprint=_fingerprint(examples, held_out),
        portions=portions,
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


def _part(
    examples: list[Example], config: DataConfig, train: Part, validation: Part
) -> tuple[list[Example], list[Example]]:
    """Hold out a share of the training rows, unless the recipe wants none."""
    if config.validation == "none":
        return examples, []
    share = config.validation if isinstance(config.validation, float) else VALIDATION_SHARE
    if config.stratify:
        check_labels(examples)
    examples, held_out = split(examples, share, config.seed, stratify=config.stratify)
    grouped = f", by {config.group}" if config.group else ""
    validation.source = f"{share:.0%} of the training rows, seed {config.seed}{grouped}"
    validation.read = len(held_out)
    train.read -= len(held_out)
    return examples, held_out


def _without_leaks(
    examples: list[Example], held_out: list[Example], config: DataConfig,
    refusals: list[Refusal], train: Part, validation: Part,
) -> list[Example]:  # fmt: skip
    """The training rows after data.on_leak; the validation rows stay as they are, so that scores compare."""
    found = leaks(examples, held_out)
    if not found:
        return examples
    same = {example.content for _, example in found}
    validation.in_training = sum(example.content in same for example in held_out)
    if config.on_leak == "stop":
        held, trained = found[0]
        raise DataError(
            f"{held.where}: this validation row stands in the training rows too, at {trained.where}; "
            f"{validation.in_training} of {len(held_out)} do",
            mend="data.on_leak=drop takes them out of the training rows",
        )
    if config.on_leak == "warn":
        return examples
    train.leaks = len(found)
    refusals += [
        Refusal(trained.where, f"the same as the validation row {held.where}", _plain(trained))
        for held, trained in found
    ]
    return [example for example in examples if example.content not in same]


def _portion(config: DataConfig, reader: Format, part: Part) -> Portion:
    return Portion(
        source_name(config.path, config.split), config.weight, part.read, part.refused, part.duplicates,
        format=reader.spec(),
    )  # fmt: skip


def _read(
    raw: Iterable[RawRow], reader: Format, config: DataConfig, refusals: list[Refusal], part: Part,
    seen: dict[Example, str],
) -> list[Example]:  # fmt: skip
    """The examples of one set. `seen` has where each stands, for data.deduplicate over several sets."""
    examples: list[Example] = []
    for row in raw:
        part.read += 1
        try:
            if row.problem:
                raise RowError(row.problem)
            example = replace(reader.read(row.values), where=row.where, group=_group(row, config.group))
        except RowError as error:
            if config.on_bad_row == "stop" and error.kind != "unwanted":
                mend = error.mend or "mend the row, or leave such rows out with data.on_bad_row=skip"
                raise DataError(f"{row.where}: {error.reason}", mend=mend) from None
            part.refused += 1
            refusals.append(Refusal(row.where, error.reason, row.values))
            continue
        if config.deduplicate == "exact":
            if there := seen.get(example.content):
                part.duplicates += 1
                refusals.append(Refusal(row.where, f"the same as {there}", row.values))
                continue
            seen[example.content] = row.where
        examples.append(example)
    return examples


def _group(row: RawRow, name: str) -> str:
    """What the row's group is called; a row without one would be parted by chance."""
    if not name:
        return ""
    value = column(row.values, name)
    if value is None or not str(value).strip():
        raise RowError(f"{name} is empty, and data.group goes by it")
    return str(value).strip()


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
    return {key: value for key, value in asdict(example).items() if value and key not in ("where", "group")}


def _fingerprint(*sides: list[Example]) -> str:
    digest = hashlib.sha256()
    for side in sides:
        for example in side:
            digest.update(json.dumps(_plain(example), ensure_ascii=False, sort_keys=True).encode())
        digest.update(b"\n--\n")
    return digest.hexdigest()
