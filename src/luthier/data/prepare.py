"""From the data block of a recipe to training, validation and test examples, with a count of every row."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from luthier.core.errors import DataError, InputError
from luthier.core.events import Progress
from luthier.data import cache
from luthier.data.detect import Opened, open_set, refuse_other_task, refuse_unlearned, task_for
from luthier.data.file_types.base import RawRow
from luthier.data.formats.base import FORMATS, Format, column
from luthier.data.mix import Portion, members, weigh
from luthier.data.prepared import SIDES, Prepared, SplitCounts
from luthier.data.read import encodings, local_files
from luthier.data.settings import DataConfig
from luthier.data.sources import HeldOut, open_rows, other_source, refuse_split_settings, source_name
from luthier.data.split import check_labels, leaks, split
from luthier.data.store import (
    DataFolder,
    Examples,
    Records,
    Refusal,
    Refusals,
    Store,
    content_record,
    example_digest,
    plain,
)
from luthier.data.stream import Stream, refuse_settings
from luthier.rendering.example import FIXES, RowError
from luthier.tasks.base import Task

VALIDATION_SHARE = 0.1
SHOW_EVERY = 1_000  # rows
HELD_OUT: tuple[HeldOut, HeldOut] = ("test", "validation")


def load(config: DataConfig, task: Task | None, progress: Progress | None = None) -> Prepared:
    """Read all rows and split them into training, validation and test examples. Needs no tokenizer.

    DataError names file, row and fix; rows left out by policy are in `refusals`.
    """
    progress = progress or Progress()
    if not config.path:
        raise InputError("no data given", fix="data=FILE, a hub id, or data=builtin:reviews")
    blocks = members(config)
    if config.streaming:
        return _Loader(config, blocks[0][0], task, Store(), progress).stream(blocks[0][1])
    name = _cached_name(config, [block for block, _ in blocks], task) if config.cache else ""
    if name and (found := cache.find(name)):
        progress.note("these files were read before: their rows come from the cache")
        data = _restored(*found)
        if "format" in data.decided:
            progress.note(f"{config.path}: {data.format_why}")
        return data
    store = Store(Records(cache.begin() if name else DataFolder(), "examples"))
    data = _Loader(config, blocks[0][0], task, store, progress).load(blocks)
    if name:
        _keep(name, data)
    return data


def _cached_name(recipe: DataConfig, blocks: list[DataConfig], task: Task | None) -> str:
    """Name of the cache entry for what `load` returns; '' where its files are small, or not on this machine."""
    if not all(local_files(block.path, block.split) for block in blocks):
        return ""
    blocks = [*blocks, *(other for side in HELD_OUT if (other := other_source(recipe, blocks[0], side)))]
    there = [local_files(block.path, block.split) for block in blocks]
    content = cache.content_of([file for files in there for file in files or ()])
    if content is None or not all(there):
        return ""
    dumped = [block.model_dump(mode="json", exclude={"workers", "cache"}) for block in [recipe, *blocks]]
    return cache.key("examples", {"blocks": dumped, "content": content, "task": task.spec() if task else None})


def _keep(name: str, data: Prepared) -> None:
    """Put what was read into the cache."""
    store = data.examples.store
    values, arrays = store.state()
    values |= {"account": data.account(), "decided": data.decided, "refusals": [asdict(each) for each in data.refusals]}
    arrays |= {side: data.side(side).examples.numbers for side in SIDES}
    cache.keep(name, store.records.folder, values, arrays)


def _restored(folder: Path, values: dict[str, Any], arrays: "dict[str, array[int]]") -> Prepared:
    """What an earlier run read."""
    store, account = Store.restored(DataFolder.existing(folder), values, arrays), values["account"]
    refusals = Refusals(Refusal(**each) for each in values["refusals"])
    more = {"portions": [Portion(**each) for each in account["mix"]], "decided": values["decided"]}
    return Prepared.restored(account, {side: Examples(store, arrays[side]) for side in SIDES}, refusals, **more)


@dataclass(slots=True)
class _Loader:
    """Reads all sets of a recipe once."""

    recipe: DataConfig
    config: DataConfig
    """The recipe with the entry of a dataset_info.json resolved."""
    task: Task | None
    store: Store
    progress: Progress
    refusals: Refusals = field(default_factory=Refusals)
    counts: dict[str, SplitCounts] = field(default_factory=lambda: {side: SplitCounts() for side in SIDES})
    seen: dict[bytes, int] = field(default_factory=dict)
    """Digest -> number in the store of each training example, for data.deduplicate over several sets."""
    decided: dict[str, Any] = field(default_factory=dict)
    """What a recipe keeps of formats that were guessed: see Prepared.decided."""

    def open(self, config: DataConfig, key: str) -> Opened:
        """One set, with its format; a guess is reported and kept."""
        opened = open_set(config, self.progress, mixed=key != "format")
        if opened.guessed:
            self.decided[key] = opened.format.spec()
            self.progress.note(f"{config.path}: {opened.why}")
        return opened

    def open_first(self, found: str) -> tuple[Opened, Task]:
        """The set at data.path and the task; `found` is where its format comes from, if not from its rows."""
        opened = self.open(self.config, "format")
        task = self.task or opened.task or task_for(opened.format)
        if opened.task and self.task is None:
            self.decided["task"] = task.spec()
        refuse_unlearned(opened.format, task)
        return opened._replace(why=found or opened.why), task

    def load(self, blocks: list[tuple[DataConfig, str]]) -> Prepared:
        """Read all sets and split them."""
        config, train = self.config, self.counts["train"]
        train.source = " + ".join(source_name(block) for block, _ in blocks)
        opened, task = self.open_first(blocks[0][1])
        others = {side: other_source(self.recipe, config, side) for side in reversed(HELD_OUT)}
        refuse_split_settings(config, others["validation"])
        sets = [self.read(opened.rows, opened.format, config, train)]
        portions = [_portion(config, opened.format, train)]
        for number, (block, _) in enumerate(blocks[1:]):
            one = self.open(block, f"mix.{number}")
            refuse_unlearned(one.format, task)
            refuse_other_task(config, opened.format, block, one.format, self.task)
            part = SplitCounts()
            sets.append(self.read(one.rows, one.format, block, part))
            portions.append(_portion(block, one.format, part))
            for key in ("read", "refused", "duplicates"):
                setattr(train, key, getattr(train, key) + getattr(part, key))
        examples = Examples(self.store, (number for one in sets for number in one))
        every, held = len(examples), dict.fromkeys(SIDES, examples)
        for side in HELD_OUT:
            held[side], examples = self.split_off(side, others[side], examples, opened.format, every)
            train.read -= self.counts[side].read if others[side] is None else 0
        if len(portions) > 1 or config.weight != 1:
            examples = weigh(sets, examples, portions, config.seed)
            train.by_weight = sum(portion.by_weight for portion in portions)
            train.repeated = sum(portion.repeated for portion in portions)
        else:
            portions = []
        examples = _take(examples, config.limit, config.seed, train)
        limit = (others["validation"] or config).validation_limit
        held["validation"] = _take(held["validation"], limit, config.seed, self.counts["validation"])
        for side in HELD_OUT:
            if others[side] is not None:
                examples = self.without_leaks(examples, held[side], side)
        if not examples:
            raise DataError(f"{config.path}: no row is left to train on, {len(self.refusals)} were refused")
        files = encodings([*self.store.files, *self.refusals.files])
        held["train"] = examples
        return self.prepared(opened, task.fitted(examples.labels), held, portions=portions, files=files)

    def stream(self, found: str) -> Prepared:
        """Read what is held out, and leave the training rows to the run."""
        config = self.config
        refuse_settings(self.recipe)
        opened, task = self.open_first(found)
        if task.model_class == "classification" and not getattr(task, "labels", ()):
            raise InputError(
                "data.streaming: the labels are not known before the rows are read",
                fix="name them all: task.name=classify task.labels=[ONE,OTHER]",
            )
        self.counts["train"].source = f"{source_name(config)}, read while training"
        none = Examples(self.store, ())
        held = dict.fromkeys(SIDES, none)
        for side in HELD_OUT:
            if (other := other_source(self.recipe, config, side)) is not None:
                rows, _ = self.split_off(side, other, none, opened.format, 0)
                held[side] = _take(rows, other.validation_limit, config.seed, self.counts[side])
        source = partial(open_rows, config, streaming=True)
        stream = Stream(source, opened.format, config, config.seed, self.counts["train"], self.refusals)
        return self.prepared(opened, task, held, stream=stream)

    def prepared(self, opened: Opened, task: Task, examples: Mapping[str, Examples], **more: Any) -> Prepared:
        """The data of all sides, with their labels counted."""
        for side in SIDES:
            labels = Counter(label for label in examples[side].labels if label is not None)
            self.counts[side].labels = dict(labels.most_common(200))
        whole = hashlib.sha256()
        for side in SIDES[1:] if "stream" in more else SIDES:
            whole.update(b"".join(examples[side].digests) + b"--")
        known = {"format": opened.format, "format_why": opened.why, "fingerprint": whole.hexdigest()}
        known |= {"task": task, "refusals": self.refusals, "decided": self.decided}
        return Prepared.of(examples, self.counts, **known, **more)

    def read(
        self, raw: Iterable[RawRow], reader: Format, config: DataConfig, counts: SplitCounts, *, separate: bool = False
    ) -> range:
        """Put the examples of one set into the store; returns their numbers there."""
        first, seen = len(self.store), {} if separate else self.seen
        for row in raw:
            counts.read += 1
            if counts.read % SHOW_EVERY == 0:
                self.progress.rows(counts.read, None)
            try:
                if row.problem:
                    raise RowError(row.problem)
                example = replace(reader.read(row.values), where=row.where, group=_group(row, config.group))
            except RowError as error:
                if config.on_bad_row == "stop" and error.kind != "unwanted":
                    raise DataError(f"{row.where}: {error.reason}", fix=error.fix or FIXES["bad"]) from None
                counts.refused += 1
                self.refusals.append(Refusal(row.where, error.reason, row.values))
                continue
            if config.deduplicate == "exact":
                there = seen.setdefault(example_digest(content_record(example)), len(self.store))
                if there < len(self.store):
                    counts.duplicates += 1
                    self.refusals.append(Refusal(row.where, f"the same as {self.store.where(there)}", row.values))
                    continue
            self.store.add(example)
        return range(first, len(self.store))

    def split_off(
        self, side: HeldOut, other: DataConfig | None, examples: Examples, reader: Format, every: int
    ) -> tuple[Examples, Examples]:
        """The rows of a held-out side, from their own source or a share of `every` row; and the rest."""
        config, counts = self.config, self.counts[side]
        if other is not None:
            counts.source = source_name(other)
            numbers = self.read(open_rows(other), other.format or reader, other, counts, separate=True)
            return Examples(self.store, numbers), examples
        share = config.test if side == "test" else config.validation
        if share is None and side == "validation":
            share = VALIDATION_SHARE
        if not isinstance(share, float):
            return examples.take(()), examples
        stratify = config.stratify
        if stratify:
            check_labels(examples)
        group = f", by {config.group}" if config.group else ""
        counts.source = f"{share:.0%} of the training rows, seed {config.seed}{group}"
        if stratify is None and self.task is not None and self.task.numeric:
            stratify = False  # the same share of each of a thousand numbers would hold out the frequent ones
        if len(examples) != every:  # some are held out already
            share *= every / max(1, len(examples))
        rest, held = split(examples, share, config.seed, stratify=stratify)
        counts.read = len(held)
        return held, rest

    def without_leaks(self, examples: Examples, held: Examples, side: HeldOut) -> Examples:
        """The training rows after data.on_leak; the rows held out stay as they are, so that scores compare."""
        found = leaks(examples, held)
        if not found:
            return examples
        digests = examples.digests
        same = {digests[place] for _, place in found}
        in_training = self.counts[side].in_training = sum(digest in same for digest in held.digests)
        if self.config.on_leak == "stop":
            first, trained = found[0]
            raise DataError(
                f"{held.where(first)}: this {side} row is a training row too, at {examples.where(trained)}; "
                f"{in_training} of {len(held)} are",
                fix="data.on_leak=drop takes them out of the training rows",
            )
        if self.config.on_leak == "warn":
            return examples
        self.counts["train"].leaks += len(found)
        for there, place in found:
            why = f"the same as the {side} row {held.where(there)}"
            self.refusals.append(Refusal(examples.where(place), why, plain(examples[place])))
        return examples.take(place for place, example_digest in enumerate(digests) if example_digest not in same)


def decided(config: DataConfig, made: Mapping[str, Any]) -> DataConfig:
    """The data block with the formats that were guessed (`Prepared.decided`), so that none is guessed again."""
    mix = [
        one.model_copy(update={"format": FORMATS.parse(made[key])}) if (key := f"mix.{number}") in made else one
        for number, one in enumerate(config.mix)
    ]
    form = FORMATS.parse(made["format"]) if "format" in made else config.format
    return config.model_copy(update={"format": form, "mix": tuple(mix)})


def _portion(config: DataConfig, reader: Format, counts: SplitCounts) -> Portion:
    read, refused, duplicates = counts.read, counts.refused, counts.duplicates
    return Portion(source_name(config), config.weight, read, refused, duplicates, format=reader.spec())


def _group(row: RawRow, name: str) -> str:
    """The group of a row; a row without one would be split at random."""
    if not name:
        return ""
    value = column(row.values, name)
    if value is None or not str(value).strip():
        raise RowError(f"{name} is empty, and data.group goes by it")
    return str(value).strip()


def _take(examples: Examples, limit: int | None, seed: int, counts: SplitCounts) -> Examples:
    """The first `limit` examples of a seeded shuffle: data sorted by label must not give one class."""
    if limit is None or len(examples) <= limit:
        return examples
    counts.over_limit = len(examples) - limit
    order = list(range(len(examples)))
    Random(seed).shuffle(order)
    return examples.take(order[:limit])
