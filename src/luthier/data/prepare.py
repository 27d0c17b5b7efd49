"""From the data block of a recipe to training, validation and test examples, with a count of every row."""

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

from luthier.core.errors import DataError, InputError
from luthier.core.events import SILENT, Progress
from luthier.core.files import sha256
from luthier.data import cache
from luthier.data.dataset_info import entries_of, resolve_name
from luthier.data.detect import Opened, open_set, task_for
from luthier.data.file_types.base import RawRow, kind_of
from luthier.data.formats.base import FORMATS, Format, column
from luthier.data.prepared import SIDES, Portion, Prepared, SplitCounts
from luthier.data.read import encodings, local_files, looks_like_file, read_rows, suffixes, validation_split
from luthier.data.settings import DataConfig
from luthier.data.store import Examples, Refusal, Refusals, Store, content_record, example_digest, plain
from luthier.data.stream import Stream, refuse_settings
from luthier.rendering.example import FIXES, RowError
from luthier.tasks.base import TASKS, Task

VALIDATION_SHARE = 0.1
HELD_OUT = ("test", "validation")


def load(config: DataConfig, task: Task | None, progress: Progress = SILENT) -> Prepared:
    """Read all rows and split them into training, validation and test examples; rows left out are in `refusals`."""
    if not config.path:
        raise InputError("no data given", fix="data=FILE, a hub id, or data=builtin:reviews")
    blocks = members(config)
    name = _cached_name(config, [block for block, _ in blocks], task) if config.cache and not config.streaming else ""
    if name and (found := cache.find(name)):
        progress.note("these files were read before: their rows come from the cache")
        folder, values, arrays = found
        store, account = Store(folder, (values, arrays)), values["account"]
        refusals = Refusals(Refusal(**each) for each in values["refusals"])
        examples = {side: Examples(store, arrays[side]) for side in SIDES}
        data = Prepared.restored(account, examples, refusals, decided=values["decided"])
        if "format" in data.decided:
            progress.note(f"{config.path}: {data.format_why}")
        return data
    store = Store(cache.begin() if name else None)
    data = _Loader(config, blocks[0][0], task, store, progress).load(blocks)
    if name:
        values, arrays = store.state()
        values |= {"account": data.account(), "decided": data.decided, "refusals": [*map(asdict, data.refusals)]}
        arrays |= {side: data.side(side).examples.numbers for side in SIDES}
        cache.keep(name, store.records.folder, values, arrays)
    return data


def _cached_name(recipe: DataConfig, blocks: list[DataConfig], task: Task | None) -> str:
    """Name of the cache entry for what `load` returns; '' where its files are small, or not on this machine."""
    if not all(local_files(block.path, block.split) for block in blocks):
        return ""
    blocks = [*blocks, *(other for side in HELD_OUT if (other := other_source(recipe, blocks[0], side)))]
    there = [local_files(block.path, block.split) for block in blocks]
    files = [file for files in there for file in files or ()]
    dumped = [block.model_dump(mode="json", exclude={"workers", "cache"}) for block in [recipe, *blocks]]
    decides = {"blocks": dumped, "task": task.spec() if task else None}
    with suppress(OSError):  # reading the rows will report what is wrong
        if all(there) and sum(file.stat().st_size for file in files) >= cache.SMALLEST:
            return cache.key("examples", {**decides, "content": [sha256(file) for file in files]})
    return ""


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

    def open(self, config: DataConfig, key: str) -> tuple[Opened, Task]:
        """One set, with its format, and the task; a guess is reported and kept."""
        opened = open_set(config, self.progress, mixed=key != "format")
        if opened.guessed:
            self.decided[key] = opened.format.spec()
            self.progress.note(f"{config.path}: {opened.why}")
        form, task = opened.format, self.task or opened.task or task_for(opened.format)
        if opened.task and self.task is None and key == "format":
            self.decided["task"] = task.spec()
        what, fix = form.unlearned()
        if what:
            why = f"the rows are {what} (format {form.name}), which task {task.name} does not learn from, and no other"
            raise InputError(f"{why}; tasks are {', '.join(TASKS.names())}", fix=fix)
        if config.streaming and task.model_class == "classification" and not getattr(task, "labels", ()):
            why = "data.streaming: the labels are not known before the rows are read"
            raise InputError(why, fix="name them all: task.name=classify task.labels=[ONE,OTHER]")
        return opened, task

    def read_sets(self, blocks: Sequence[DataConfig], first: Opened) -> tuple[list[range], list[Portion]]:
        """The numbers in the store of the rows of each set, and its counts; `first` is the first one, opened."""
        sets: list[range] = []
        portions: list[Portion] = []
        for number, block in enumerate(blocks):
            one = self.open(block, f"mix.{number - 1}")[0] if number else first
            ours, other = task_for(first.format).name, task_for(one.format).name
            if self.task is None and ours != other:
                why = f"data.mix: {self.config.path} ({first.format.name}) is for task {ours}, "
                why += f"{block.path} ({one.format.name}) for task {other}"
                raise InputError(why, fix=f"name the task for all, such as task={ours}, or leave one out")
            portions.append(Portion(source_name(block), block.weight, format=one.format.spec()))
            sets.append(self.read(one.rows, one.format, block, portions[-1]))
        for key in ("read", "refused", "duplicates"):
            setattr(self.counts["train"], key, sum(getattr(portion, key) for portion in portions))
        return sets, portions

    def load(self, blocks: list[tuple[DataConfig, str]]) -> Prepared:
        """Read all sets and split them; of a stream only what is held out, and the run reads the training rows."""
        config, streaming, train = self.config, self.config.streaming, self.counts["train"]
        if streaming:
            refuse_settings(self.recipe)
        opened, task = self.open(config, "format")
        others = {side: other_source(self.recipe, config, side) for side in reversed(HELD_OUT)}
        refuse_split_settings(config, others["validation"])
        train.source = " + ".join(source_name(block) for block, _ in blocks)
        train.source += ", read while training" if streaming else ""
        sets, portions = ([], []) if streaming else self.read_sets([block for block, _ in blocks], opened)
        examples = Examples(self.store, (number for one in sets for number in one))
        every, sides = len(examples), dict.fromkeys(SIDES, examples.take(()))
        for side in HELD_OUT:
            counts, other = self.counts[side], others[side]
            if other is not None:
                counts.source = source_name(other)
                rows = self.read(read_rows(other), other.format or opened.format, other, counts)
                sides[side] = Examples(self.store, rows)
            elif not streaming:
                examples, sides[side] = self.split_off(side, examples, every)
                train.read -= counts.read
        if len(portions) > 1 or config.weight != 1:
            examples = weigh(sets, examples, portions, config.seed)
            train.by_weight = sum(portion.by_weight for portion in portions)
            train.repeated = sum(portion.repeated for portion in portions)
        else:
            portions = []
        examples = _take(examples, config.limit, config.seed, train)
        limit = (others["validation"] or config).validation_limit
        sides["validation"] = _take(sides["validation"], limit, config.seed, self.counts["validation"])
        for side in HELD_OUT:
            if others[side] is not None:
                examples = self.without_leaks(examples, sides[side], side)
        if not examples and not streaming:
            raise DataError(f"{config.path}: no row is left to train on, {len(self.refusals)} were refused")
        sides["train"], whole = examples, hashlib.sha256()
        for name, one in sides.items():
            labels = Counter(label for label in one.labels if label is not None)
            self.counts[name].labels = dict(labels.most_common(200))
            if name != "train" or not streaming:
                whole.update(b"".join(one.digests) + b"--")
        source = partial(read_rows, config, streaming=True)
        return Prepared(
            examples=sides["train"],
            validation_examples=sides["validation"],
            test_examples=sides["test"],
            train=train,
            validation=self.counts["validation"],
            test=self.counts["test"],
            format=opened.format,
            format_why=blocks[0][1] or opened.why,
            task=task if streaming else task.fitted(examples.labels),
            refusals=self.refusals,
            fingerprint=whole.hexdigest(),
            files=encodings([*self.store.files, *self.refusals.files]),
            portions=portions,
            stream=Stream(source, opened.format, config, train, self.refusals) if streaming else None,
            decided=self.decided,
        )

    def read(self, raw: Iterable[RawRow], reader: Format, config: DataConfig, counts: SplitCounts | Portion) -> range:
        """Put the examples of one set into the store; returns their numbers there."""
        first = len(self.store)
        seen = self.seen if isinstance(counts, Portion) else {}  # the training sets share theirs
        for row in raw:
            counts.read += 1
            if counts.read % 1_000 == 0:
                self.progress.rows(counts.read, None)
            try:
                if row.problem:
                    raise RowError(row.problem)
                example = replace(reader.read(row.values), where=row.where)
                if config.group:
                    value = column(row.values, config.group)
                    if value is None or not str(value).strip():  # it would be split at random
                        raise RowError(f"{config.group} is empty, and data.group goes by it")
                    example = replace(example, group=str(value).strip())
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

    def split_off(self, side: str, examples: Examples, every: int) -> tuple[Examples, Examples]:
        """The rest, and the rows of a held-out side: a share of `every` row."""
        config, counts = self.config, self.counts[side]
        share = config.test if side == "test" else config.validation
        if share is None and side == "validation":
            share = VALIDATION_SHARE
        if not isinstance(share, float):
            return examples, examples.take(())
        stratify = config.stratify
        if stratify and None in (labels := examples.labels):
            why = f"data.stratify: {examples.where(labels.index(None))} has no label"
            raise InputError(why, fix="data.stratify=auto, or a format with labels")
        group = f", by {config.group}" if config.group else ""
        counts.source = f"{share:.0%} of the training rows, seed {config.seed}{group}"
        if stratify is None and self.task is not None and self.task.numeric:
            stratify = False  # the same share of each of a thousand numbers would hold out the frequent ones
        if len(examples) != every:  # some are held out already
            share *= every / max(1, len(examples))
        rest, held = split(examples, share, config.seed, stratify=stratify)
        counts.read = len(held)
        return rest, held

    def without_leaks(self, examples: Examples, held: Examples, side: str) -> Examples:
        """The training rows after data.on_leak; the rows held out stay as they are, so that scores compare."""
        there: dict[bytes, int] = {}
        for place, digest in enumerate(held.digests):
            there.setdefault(digest, place)
        digests = examples.digests
        found = [(place, there[digest]) for place, digest in enumerate(digests) if digest in there]
        if not found:
            return examples
        same = {digests[place] for place, _ in found}
        in_training = self.counts[side].in_training = sum(digest in same for digest in held.digests)
        if self.config.on_leak == "stop":
            trained, first = found[0]
            why = f"{held.where(first)}: this {side} row is a training row too, at {examples.where(trained)}; "
            why += f"{in_training} of {len(held)} are"
            raise DataError(why, fix="data.on_leak=drop takes them out of the training rows")
        if self.config.on_leak == "warn":
            return examples
        self.counts["train"].leaks += len(found)
        for place, other in found:
            why = f"the same as the {side} row {held.where(other)}"
            self.refusals.append(Refusal(examples.where(place), why, plain(examples[place])))
        return examples.take(place for place, digest in enumerate(digests) if digest not in same)


def decided(config: DataConfig, made: Mapping[str, Any]) -> DataConfig:
    """The data block with the formats that were guessed (`Prepared.decided`), so that none is guessed again."""
    forms = {key: FORMATS.parse(spec) for key, spec in made.items() if key != "task"}
    mix = [one.model_copy(update={"format": forms.get(f"mix.{i}", one.format)}) for i, one in enumerate(config.mix)]
    return config.model_copy(update={"format": forms.get("format", config.format), "mix": tuple(mix)})


def _take(examples: Examples, limit: int | None, seed: int, counts: SplitCounts) -> Examples:
    """The first `limit` examples of a seeded shuffle: data sorted by label must not give one class."""
    if limit is None or len(examples) <= limit:
        return examples
    counts.over_limit = len(examples) - limit
    order = list(range(len(examples)))
    Random(seed).shuffle(order)
    return examples.take(order[:limit])


def members(config: DataConfig) -> list[tuple[DataConfig, str]]:
    """The resolved data block of each set, with where its format comes from: data.path, then those of data.mix."""
    blocks = [resolve_name(config), *(resolve_name(config.model_copy(update=dict(one))) for one in config.mix)]
    places = [(block.path, block.split, block.subset) for block, _ in blocks]
    for place, (block, _) in zip(places, blocks, strict=True):
        if places.count(place) > 1:
            raise InputError(f"data.mix: {place[0]} is there twice", fix="name it once, with how often as its weight")
        if config.mix and block.limit != config.limit:
            why = f"data.mix: num_samples of {block.path} is not used in a mix"
            raise InputError(why, fix="give its share as the weight")
    return blocks


def source_name(config: DataConfig) -> str:
    """The name of a set in messages and data.json."""
    return config.path if config.path.endswith(suffixes()) else f"{config.path} ({config.split})"


def other_source(recipe: DataConfig, config: DataConfig, side: str) -> DataConfig | None:
    """The data block of the side's own rows, if any; `config` is `recipe` with a name of dataset_info.json resolved."""
    wanted = getattr(config, side)
    if wanted is None and side == "validation":
        found = validation_split(config.path, config.hub, config.subset)
        return config.model_copy(update={"split": found}) if found else None
    if wanted is None or wanted == "none" or isinstance(wanted, float):
        return None
    if wanted in entries_of(recipe.path)[1]:
        made, _ = resolve_name(recipe.model_copy(update={"subset": wanted, "limit": recipe.validation_limit}))
        return made.model_copy(update={"validation_limit": made.limit})
    if wanted.startswith("builtin:"):
        return config.model_copy(update={"path": wanted, "split": "heldout"})
    one_file = kind_of(config.path) == "file"
    if looks_like_file(wanted) or (one_file and kind_of(wanted)):
        return config.model_copy(update={"path": wanted, "split": "train", "subset": ""})
    if one_file:
        why = f"data.{side}={wanted}: {config.path} is one file, which has no splits"
        raise InputError(why, fix=f"give a file with {side} rows, a share such as 0.1, or none")
    return config.model_copy(update={"split": wanted})


def refuse_split_settings(config: DataConfig, other: DataConfig | None) -> None:
    """Refuse data.group and data.stratify where no share is held out: they would silently do nothing."""
    if isinstance(config.test, float) or (other is None and config.validation != "none"):
        return
    why = f"the validation rows come from {source_name(other)}" if other else "data.validation is none"
    for key in ("group", "stratify"):
        if getattr(config, key):
            fix = f"leave data.{key} out, or data.validation=0.1"
            raise InputError(f"data.{key}: {why}, so no share is held out", fix=fix)


def split(examples: Examples, share: float, seed: int, *, stratify: bool | None = None) -> tuple[Examples, Examples]:
    """Hold out `share` of the examples by a seeded shuffle: (training, held out).

    Equal examples, and those of one group, stay on one side, so none leaks. With `stratify` each label holds out
    its share (None: where every example has a label); a group counts as its most frequent label.
    """
    if len(examples) < 2:
        return examples, examples.take(())
    label_of, group_of = examples.labels, examples.groups
    by_label = None not in label_of if stratify is None else stratify
    units = _units(examples.digests, group_of)
    Random(seed).shuffle(units)
    labels = [""] * len(units)
    if by_label:
        labels = [Counter(label_of[place] or "" for place in unit).most_common(1)[0][0] for unit in units]
    wanted = max(1, round(len(examples) * share))
    rows = Counter(label for unit, label in zip(units, labels, strict=True) for _ in unit)
    room = _places(rows, share, wanted) if by_label else {"": wanted}
    held_out: list[int] = []
    rest: list[int] = []
    for unit, label in zip(units, labels, strict=True):
        fits = len(unit) <= room[label]
        room[label] -= len(unit) if fits else 0
        (held_out if fits else rest).extend(unit)
    if not held_out and any(group_of):
        least = min(map(len, units))
        why = f"no group of data.group fits into the {wanted} rows to hold out: the smallest has {least}"
        raise DataError(why, fix="raise data.validation, or give a file with validation rows")
    return examples.take(rest), examples.take(held_out)


def _units(digests: Sequence[bytes], groups: Sequence[str]) -> list[list[int]]:
    """Places that must stay together (equal examples, and those of a group), in the order of their first."""
    parent = array("Q", range(len(digests)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[bytes | str, int] = {}
    for i, keys in enumerate(zip(digests, groups, strict=True)):
        for key in keys:
            if key:
                one, other = root(first.setdefault(key, i)), root(i)
                parent[max(one, other)] = min(one, other)
    units: dict[int, list[int]] = {}
    for i in range(len(digests)):
        units.setdefault(root(i), []).append(i)
    return list(units.values())


def _places(rows: Counter[str], share: float, wanted: int) -> dict[str, int]:
    """Rows each label holds out, never all: its share rounded down, one more for those with none or a big remainder."""
    places = {label: math.floor(count * share) for label, count in rows.items()}
    open_labels = [label for label, count in rows.items() if places[label] < count - 1]
    open_labels.sort(key=lambda label: (places[label] > 0, places[label] - rows[label] * share, -rows[label], label))
    for label in open_labels[: max(0, wanted - sum(places.values()))]:
        places[label] += 1
    return places


def weigh(sets: Sequence[range], examples: Examples, portions: Sequence[Portion], seed: int) -> Examples:
    """The rows of an epoch. `sets` has, for each portion, the numbers of its rows in the store, held out or not.

    Weight 2 has every row twice, weight 0.5 half of the rows once, the same ones in each epoch. Weights count after
    rows are held out, so no copy of a held-out row trains.
    """
    made = array("Q")
    for number, (one, portion) in enumerate(zip(sets, portions, strict=True)):
        rows = array("Q", (which for which in examples.numbers if which in one))
        whole = int(portion.weight)
        part = round((portion.weight - whole) * len(rows))
        more = sorted(Random(f"{seed}:{number}").sample(range(len(rows)), part))
        portion.held_out = len(one) - len(rows)
        portion.by_weight = 0 if whole else len(rows) - part
        portion.repeated = max(0, whole - 1) * len(rows) + (part if whole else 0)
        portion.rows = whole * len(rows) + part
        made += rows * whole + array("Q", (rows[i] for i in more))
    return Examples(examples.store, made)
