"""From the data block of a recipe to training, validation and test examples, with an account of every row."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

from luthier.core.errors import DataError, InputError
from luthier.core.events import Progress
from luthier.data import cache
from luthier.data.detect import Opened, open_set, refuse_other_task, refuse_unlearned, task_for
from luthier.data.formats.base import FORMATS, Format, column
from luthier.data.mix import Portion, members, weigh
from luthier.data.prepared import SIDES, Part, Prepared
from luthier.data.read import RawRow, encodings, local_files, read_rows
from luthier.data.settings import DataConfig
from luthier.data.sources import other_source, refuse_split_settings, source_name
from luthier.data.split import check_labels, leaks, split
from luthier.data.store import Examples, Place, Records, Refusal, Refusals, Store, content_record, digest, plain
from luthier.data.stream import Stream, refuse_settings
from luthier.rendering.example import RowError
from luthier.tasks.base import TASKS, Task

VALIDATION_SHARE = 0.1
SHOW_EVERY = 1_000  # rows


def load(config: DataConfig, task: Task | None, progress: Progress | None = None) -> Prepared:
    """Read all rows and part them into training, validation and test examples. Needs no tokenizer.

    DataError names file, row and fix; rows left out by policy are in `refusals`.
    """
    progress = progress or Progress()
    if not config.path:
        raise InputError("no data given", fix="data=FILE, a hub id, or data=builtin:reviews")
    blocks = members(config)
    if config.streaming:
        return _Reading(config, blocks[0][0], task, Store(), progress).stream(blocks[0][1])
    name = _cached_name(config, [block for block, _ in blocks], task) if config.cache else ""
    if name and (found := cache.find(name)):
        progress.note("these files were read before: their rows come from the cache")
        data = _again(*found)
        if "format" in data.decided:
            progress.note(f"{config.path}: {data.format_why}")
        return data
    store = Store(Records(cache.begin() if name else Place(), "examples"))
    reading = _Reading(config, blocks[0][0], task, store, progress)
    data = reading.load(blocks)
    if name:
        _keep(name, data)
    return data


def _cached_name(recipe: DataConfig, blocks: list[DataConfig], task: Task | None) -> str:
    """Name of the cache's entry for what `load` makes; '' where its files are small, or not on this machine."""
    if not all(local_files(block.path, block.split) for block in blocks):
        return ""
    sides: tuple[Literal["validation"], Literal["test"]] = ("validation", "test")
    others = [other for side in sides if (other := other_source(recipe, blocks[0], side))]
    there = [local_files(block.path, block.split) for block in [*blocks, *others]]
    content = cache.content_of([file for files in there for file in files or ()])
    if content is None or not all(there):
        return ""
    dumped = [block.model_dump(mode="json", exclude={"workers", "cache"}) for block in [recipe, *blocks, *others]]
    return cache.key("examples", {"blocks": dumped, "content": content, "task": task.spec() if task else None})


def _keep(name: str, data: Prepared) -> None:
    """Put what was read into the cache."""
    store = data.examples.store
    values, arrays = store.set_down()
    values |= {
        "account": data.account(),
        "decided": data.decided,
        "format_why": data.format_why,
        "refusals": [asdict(each) for each in data.refusals],
    }
    arrays |= {side: data.side(side).examples.numbers for side in SIDES}
    cache.keep(name, store.records.place, values, arrays)


def _again(folder: Path, values: dict[str, Any], arrays: dict[str, array[int]]) -> Prepared:
    """What an earlier run read."""
    store, account = Store.again(Place.kept(folder), values, arrays), values["account"]
    train, validation, test = (Examples(store, arrays[side]) for side in SIDES)
    return Prepared(
        format=FORMATS.parse(account["format"]),
        format_why=account["format_why"],
        task=TASKS.parse(account["task"]),
        examples=train,
        validation_examples=validation,
        test_examples=test,
        refusals=Refusals(Refusal(**each) for each in values["refusals"]),
        train=Part(**account["train"]),
        validation=Part(**account["validation"]),
        test=Part(**account["test"]),
        fingerprint=account["fingerprint"],
        files=account["files"],
        portions=[Portion(**each) for each in account["mix"]],
        decided=values["decided"],
    )


@dataclass(slots=True)
class _Reading:
    """One reading of all sets of a recipe."""

    recipe: DataConfig
    config: DataConfig
    """The recipe with what a dataset_info.json says put in."""
    task: Task | None
    store: Store
    progress: Progress
    refusals: Refusals = field(default_factory=Refusals)
    seen: dict[bytes, int] = field(default_factory=dict)
    """Digest -> number in the store of each training example, for data.deduplicate over several sets."""

    decided: dict[str, Any] = field(default_factory=dict)
    """What a recipe keeps of formats that were guessed: see Prepared.decided."""

    def open(self, config: DataConfig, key: str) -> Opened:
        """One set, with its format; a guess is said and kept."""
        opened = open_set(config, self.progress, mixed=key != "format")
        if opened.guessed:
            self.decided[key] = opened.format.spec()
            self.progress.note(f"{config.path}: {opened.why}")
        return opened

    def load(self, blocks: list[tuple[DataConfig, str]]) -> Prepared:
        """Read all sets and part them."""
        config, found = self.config, blocks[0][1]
        train = Part(source=" + ".join(source_name(block.path, block.split) for block, _ in blocks))
        validation, test = Part(), Part()
        opened = self.open(config, "format")
        raw, reader, why = opened.rows, opened.format, opened.why
        task = self.task or opened.task or task_for(reader)
        if opened.task and self.task is None:
            self.decided["task"] = task.spec()
        refuse_unlearned(reader, task)
        other, apart = other_source(self.recipe, config, "validation"), other_source(self.recipe, config, "test")
        refuse_split_settings(config, other)
        sets = [self.read(raw, reader, config, train)]
        portions = [_portion(config, reader, train)]
        for number, (block, _) in enumerate(blocks[1:]):
            opened = self.open(block, f"mix.{number}")
            raw, other_reader = opened.rows, opened.format
            refuse_unlearned(other_reader, task)
            refuse_other_task(config, reader, block, other_reader, self.task)
            part = Part()
            sets.append(self.read(raw, other_reader, block, part))
            portions.append(_portion(block, other_reader, part))
            train.read, train.refused = train.read + part.read, train.refused + part.refused
            train.duplicates += part.duplicates
        examples = Examples(self.store, (number for one in sets for number in one))
        every = len(examples)
        tested, examples = self.part_off("test", apart, examples, reader, every, test)
        held_out, examples = self.part_off("validation", other, examples, reader, every, validation)
        train.read -= sum(part.read for part, block in ((test, apart), (validation, other)) if block is None)

        if len(portions) > 1 or config.weight != 1:
            examples = weigh(sets, examples, portions, config.seed)
            train.by_weight = sum(portion.by_weight for portion in portions)
            train.repeated = sum(portion.repeated for portion in portions)
        else:
            portions = []
        examples = _take(examples, config.limit, config.seed, train)
        held_out = _take(held_out, (other or config).validation_limit, config.seed, validation)
        if apart is not None:
            examples = self.without_leaks(examples, tested, train, test, "test")
        if other is not None:
            examples = self.without_leaks(examples, held_out, train, validation, "validation")
        if not examples:
            raise DataError(f"{config.path}: no row is left to train on, {len(self.refusals)} were refused")
        task = task.fitted(examples.labels)
        for part, rows in ((train, examples), (validation, held_out), (test, tested)):
            part.labels = dict(Counter(label for label in rows.labels if label is not None).most_common(200))
        return Prepared(
            format=reader,
            format_why=found or why,
            task=task,
            examples=examples,
            validation_examples=held_out,
            test_examples=tested,
            refusals=self.refusals,
            train=train,
            validation=validation,
            test=test,
            fingerprint=_fingerprint(examples, held_out, tested),
            portions=portions,
            files=encodings([*self.store.files, *self.refusals.files]),
            decided=self.decided,
        )

    def stream(self, found: str) -> Prepared:
        """Read what is held out, and leave the training rows to the run."""
        config = self.config
        refuse_settings(self.recipe)
        _, reader, why, meant, _ = self.open(config, "format")
        task = self.task or meant or task_for(reader)
        if meant and self.task is None:
            self.decided["task"] = task.spec()
        refuse_unlearned(reader, task)
        if task.model_class == "classification" and not getattr(task, "labels", ()):
            raise InputError(
                "data.streaming: the labels are not known before the rows are read",
                fix="name them all: task.name=classify task.labels=[ONE,OTHER]",
            )
        parts = {side: Part() for side in SIDES}
        parts["train"].source = f"{source_name(config.path, config.split)}, read while training"
        held: dict[str, Examples] = {}
        for side in ("test", "validation"):
            other, none = other_source(self.recipe, config, side), Examples(self.store, ())
            held[side] = none
            if other is not None:
                held[side], _ = self.part_off(side, other, none, reader, 0, parts[side])
                held[side] = _take(held[side], other.validation_limit, config.seed, parts[side])
            parts[side].labels = dict(Counter(filter(None, held[side].labels)).most_common(200))
        source = partial(
            read_rows,
            config.path,
            split=config.split,
            subset=config.subset,
            hub=config.hub,
            streaming=True,
            columns=config.columns,
        )
        return Prepared(
            format=reader,
            format_why=found or why,
            task=task,
            examples=Examples(self.store, ()),
            validation_examples=held["validation"],
            test_examples=held["test"],
            refusals=self.refusals,
            train=parts["train"],
            validation=parts["validation"],
            test=parts["test"],
            fingerprint=_fingerprint(held["validation"], held["test"]),
            stream=Stream(source, reader, config, config.seed, parts["train"], self.refusals),
            decided=self.decided,
        )

    def read(
        self, raw: Iterable[RawRow], reader: Format, config: DataConfig, part: Part, *, apart: bool = False
    ) -> range:
        """Put the examples of one set into the store; returns their numbers there."""
        first, seen = len(self.store), {} if apart else self.seen
        for row in raw:
            part.read += 1
            if part.read % SHOW_EVERY == 0:
                self.progress.rows(part.read, None)
            try:
                if row.problem:
                    raise RowError(row.problem)
                example = replace(reader.read(row.values), where=row.where, group=_group(row, config.group))
            except RowError as error:
                if config.on_bad_row == "stop" and error.kind != "unwanted":
                    fix = error.fix or "fix the row, or leave such rows out with data.on_bad_row=skip"
                    raise DataError(f"{row.where}: {error.reason}", fix=fix) from None
                part.refused += 1
                self.refusals.append(Refusal(row.where, error.reason, row.values))
                continue
            if config.deduplicate == "exact":
                there = seen.setdefault(digest(content_record(example)), len(self.store))
                if there < len(self.store):
                    part.duplicates += 1
                    self.refusals.append(Refusal(row.where, f"the same as {self.store.where(there)}", row.values))
                    continue
            self.store.add(example)
        return range(first, len(self.store))

    def part_off(
        self, side: str, other: DataConfig | None, examples: Examples, reader: Format, every: int, part: Part
    ) -> tuple[Examples, Examples]:
        """The rows of a side that does not train, from their own source or a share of `every` row; and the rest."""
        config = self.config
        if other is not None:
            part.source = source_name(other.path, other.split)
            raw = read_rows(other.path, split=other.split, subset=other.subset, hub=other.hub, columns=other.columns)
            return Examples(self.store, self.read(raw, other.format or reader, other, part, apart=True)), examples
        share = share_of(config, side)
        if share is None:
            return examples.take(()), examples
        if config.stratify:
            check_labels(examples)
        part.source = (
            f"{share:.0%} of the training rows, seed {config.seed}{', by ' * bool(config.group)}{config.group}"
        )
        stratify = config.stratify
        if stratify is None and self.task is not None and self.task.numeric:
            stratify = False  # the same share of each of a thousand numbers would hold out the frequent ones
        if len(examples) != every:  # some are parted off already
            share *= every / max(1, len(examples))
        rest, held = split(examples, share, config.seed, stratify=stratify)
        part.read = len(held)
        return held, rest

    def without_leaks(self, examples: Examples, held: Examples, train: Part, part: Part, side: str) -> Examples:
        """The training rows after data.on_leak; the rows held out stay as they are, so that scores compare."""
        found = leaks(examples, held)
        if not found:
            return examples
        same = {examples.digests[place] for _, place in found}
        in_training = sum(digest in same for digest in held.digests)
        part.in_training = in_training
        if self.config.on_leak == "stop":
            there, trained = found[0]
            raise DataError(
                f"{held.where(there)}: this {side} row stands in the training rows too, at {examples.where(trained)}; "
                f"{in_training} of {len(held)} do",
                fix="data.on_leak=drop takes them out of the training rows",
            )
        if self.config.on_leak == "warn":
            return examples
        train.leaks += len(found)
        self.refusals.extend(
            Refusal(
                examples.where(trained), f"the same as the {side} row {held.where(there)}", plain(examples[trained])
            )
            for there, trained in found
        )
        return examples.take(place for place, digest in enumerate(examples.digests) if digest not in same)


def decided(config: DataConfig, made: Mapping[str, Any]) -> DataConfig:
    """The data block with the formats put in that were guessed (`Prepared.decided`), so that none is guessed again."""
    mix = [
        one.model_copy(update={"format": FORMATS.parse(made[key])}) if (key := f"mix.{number}") in made else one
        for number, one in enumerate(config.mix)
    ]
    form = FORMATS.parse(made["format"]) if "format" in made else config.format
    return config.model_copy(update={"format": form, "mix": tuple(mix)})


def share_of(config: DataConfig, side: str) -> float | None:
    """The share of the rows that is held out for a side, where it has no rows of its own."""
    wanted = config.test if side == "test" else config.validation
    if wanted is None and side == "validation":
        return VALIDATION_SHARE
    return wanted if isinstance(wanted, float) else None


def _portion(config: DataConfig, reader: Format, part: Part) -> Portion:
    return Portion(
        source_name(config.path, config.split),
        config.weight,
        part.read,
        part.refused,
        part.duplicates,
        format=reader.spec(),
    )


def _group(row: RawRow, name: str) -> str:
    """What the row's group is called; a row without one would be parted by chance."""
    if not name:
        return ""
    value = column(row.values, name)
    if value is None or not str(value).strip():
        raise RowError(f"{name} is empty, and data.group goes by it")
    return str(value).strip()


def _take(examples: Examples, limit: int | None, seed: int, part: Part) -> Examples:
    """The first `limit` examples of a seeded shuffle: data sorted by label must not give one class."""
    if limit is None or len(examples) <= limit:
        return examples
    part.over_limit = len(examples) - limit
    order = list(range(len(examples)))
    Random(seed).shuffle(order)
    return examples.take(order[:limit])


def _fingerprint(*sides: Examples) -> str:
    whole = hashlib.sha256()
    for side in sides:
        whole.update(b"".join(side.digests) + b"--")
    return whole.hexdigest()
