"""Checks of the data that a run would learn from, read as `train` would, but without the rows that would stop it."""

from array import array
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal, get_args

from luthier.core.errors import DataError, InputError, install_anywhere
from luthier.core.events import SILENT, Progress
from luthier.data.checks import duplicates
from luthier.data.checks.duplicates import TextHashes, beginning, content, groups, near, normalized, prompt, text_hashes
from luthier.data.checks.languages import MOST_TEXTS, available, languages
from luthier.data.checks.mask import Mask, learned_prompts, masks
from luthier.data.encode import encode, workers_for
from luthier.data.prepare import load
from luthier.data.prepared import SIDES, Prepared
from luthier.data.settings import DataConfig
from luthier.data.store import Examples
from luthier.rendering.chat_template import Template
from luthier.rendering.example import shared_start
from luthier.tasks.base import Task

Level = Literal["stop", "warn", "note"]
"""`stop`: train would stop; `warn`: look at it; `note`: good to know."""
LIMITS = (256, 512, 1024, 2048)
"""Values of train.max_length for which the report shows what they would cut."""
PLACES = 50
"""Pairs or places that are kept of one finding; the count is always of all."""
FEW_ANSWERS = 20
"""A chat with at most this many different answers has labels in words: their balance is shown."""


@dataclass(slots=True)
class Finding:
    """Something to know about the data, with the rows where it was found."""

    level: Level
    what: str
    text: str
    places: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Pair:
    """Two rows that are equal or nearly so; `similarity` is the share of their common shingles."""

    a: str
    b: str
    similarity: float
    text: str

    def __str__(self) -> str:
        return f"{self.b} = {self.a}" if self.similarity == 1 else f"{self.b} ~ {self.a} ({self.similarity:.0%})"


@dataclass(slots=True, kw_only=True)
class Audit:
    """All that `luthier check` found, as written to data.json."""

    stops: bool = False
    """Would train stop?"""
    account: dict[str, Any]
    """Format, task, template, fingerprint, and the counts of both sides."""
    max_length: int
    lengths: dict[str, int] = field(default_factory=dict)
    """Tokens of the rows before anything is cut: rows, p50, p90, p95, p99, max."""
    limits: list[dict[str, Any]] = field(default_factory=list)
    """For values of train.max_length: rows over it, their share, and the tokens beyond it."""
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    """Count of each label (or of each answer, where a chat has few different ones) on both sides."""
    scripts: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    """Count of each language (ISO 639-1); empty where the extra `languages` is not installed."""
    languages_how: str = ""
    exact: list[Pair] = field(default_factory=list)
    exact_rows: int = 0
    """Rows that are the same as an earlier one."""
    near: list[Pair] = field(default_factory=list)
    near_pairs: int = 0
    near_how: str = ""
    overlap: list[Pair] = field(default_factory=list)
    """Validation rows (b) that are the same as a training row (a), or nearly so."""
    overlap_rows: dict[str, int] = field(default_factory=dict)
    """Validation rows that are the same, whose prompt is the same, that are nearly the same."""
    conflicts: list[Pair] = field(default_factory=list)
    conflict_groups: int = 0
    """Prompts that have more than one answer or label."""
    repeated: list[dict[str, Any]] = field(default_factory=list)
    """Beginnings of prompts, and answers, that a large share of the rows has."""
    refusals: list[dict[str, str]] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, level: Level, what: str, text: str, places: Sequence[str] = ()) -> None:
        """Add a finding, after those of its level."""
        self.stops = self.stops or level == "stop"
        made = Finding(level, what, text, list(places[:PLACES]))
        insort(self.findings, made, key=lambda finding: get_args(Level).index(finding.level))


def read_all(config: DataConfig, task: Task | None, progress: Progress = SILENT) -> Prepared:
    """The rows that can be read; the others are in `refusals`. DataError where none is left."""
    try:
        return load(lenient(config), task, progress)
    except DataError:
        load(config, task)  # its message names the first bad row; here they are only counted
        raise


def lenient(config: DataConfig, task: Task | None = None) -> DataConfig:
    """The same settings without a stop. Other policies of the recipe stay: train would follow them too."""
    changes = {"on_bad_row": "skip", "on_leak": "warn" if config.on_leak == "stop" else config.on_leak}
    splits = config.on_long_row is None and task is not None and task.splits_long_rows
    if config.on_long_row in (None, "stop") and not splits:
        changes["on_long_row"] = "skip"
    return config.model_copy(update=changes)


def survey(
    config: DataConfig, task: Task | None, data: Prepared, template: Template, max_length: int, progress: Progress
) -> Audit:
    """Encode what `read` returned and check it. `task` is that of the recipe, which may leave it open."""
    workers = workers_for(config, sum(len(data.side(side).examples) for side in SIDES))
    failure, loose = "", lenient(config, data.task)
    lengths = array("I")
    try:
        encode(data, template, loose, max_length, progress=progress, whole=lengths)
    except DataError as error:
        if data.rows or not data.refusals:  # else no row is left, and the refusals say why
            raise
        failure = str(error)
    progress.stage("checking the rows")
    found = audit(data, template, lengths=lengths, max_length=max_length, workers=workers, progress=progress)
    too_long = loose.on_long_row != config.on_long_row and any(length > max_length for length in lengths)
    if too_long or (data.refusals and config.on_bad_row == "stop") or config.on_leak == "stop":  # else nothing stops it
        try:  # the error of train under the policies of the recipe
            encode(load(config, task), template, config, max_length)
        except InputError as error:
            failure = str(error)
    if failure:
        total = f"\nIn all {len(data.refusals):,} rows are refused." if len(data.refusals) > 1 else ""
        found.add("stop", "rows", failure + total, [refusal["where"] for refusal in found.refusals])
    elif len(data.refusals) == 1:
        found.add("note", "rows", "1 row is left out, as the recipe says")
    elif data.refusals:
        found.add("note", "rows", f"{len(data.refusals):,} rows are left out, as the recipe says")
    return found


def audit(
    data: Prepared, template: Template, *, lengths: Sequence[int], max_length: int, workers: int, progress: Progress
) -> Audit:
    """Check the encoded data; `lengths` are those of all rows in tokens before a limit."""
    found = Audit(account=data.account(), max_length=max_length)
    refusals = sorted(data.refusals, key=lambda refusal: natural(refusal.where))
    found.refusals = [{"where": refusal.where, "reason": refusal.reason} for refusal in refusals]
    _lengths(found, sorted(lengths))
    sides = [data.side(side).examples for side in SIDES]
    hashes = text_hashes(sides, workers, progress)
    examples = Examples(data.examples.store, (number for side in sides for number in side.numbers))
    _labels(found, data, hashes)
    found.scripts = dict(hashes.scripts.most_common())
    found.languages_how = f"{install_anywhere('languages')} detects languages as well"
    if available():
        count = min(len(examples), MOST_TEXTS)
        places = (number * len(examples) // count for number in range(count))
        found.languages = languages(content(examples[place]) for place in places)
        evenly = f", of {count:,} rows evenly spaced" if count < len(examples) else ""
        found.languages_how = f"Detected by py3langid{evenly}"
    _duplicates(found, examples, hashes, len(data.examples))
    _conflicts(found, examples, hashes)
    if hashes.short and not found.labels["train"]:
        text = f"answers of at most {duplicates.SHORT} characters: {_share(len(hashes.short), hashes.chats)}"
        shown = [examples[number] for number in hashes.short[:PLACES]]
        found.add("warn", "short answers", text, [f"{e.where}: {e.answer.strip()!r}" for e in shown])
    if empty := [refusal["where"] for refusal in found.refusals if "empty" in refusal["reason"]]:
        found.add("warn", "empty", f"rows refused for an empty text or answer: {len(empty):,}", empty)
    _repeated(found, examples, hashes)
    _masks(found, data, template)
    return found


def natural(where: str) -> tuple[str, int]:
    """Sort key of places: by file, then by the number of the row."""
    name, _, number = where.rpartition(" ")
    return (name, int(number)) if number.isdecimal() else (where, 0)


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} rows ({part / max(1, whole):.1%})"


def _lengths(found: Audit, lengths: Sequence[int]) -> None:
    """Percentiles of the sorted lengths, and what limits would cut."""
    rows = len(lengths)
    if not rows:
        return
    found.lengths = {"rows": rows, **{f"p{p}": lengths[ceil(p / 100 * rows) - 1] for p in (50, 90, 95, 99)}}
    found.lengths |= {"max": lengths[-1], "tokens": sum(lengths)}
    for limit in sorted({*LIMITS, found.max_length}):
        over = lengths[bisect_right(lengths, limit) :]
        cut = {"rows": len(over), "share": len(over) / rows, "tokens": sum(over) - limit * len(over)}
        found.limits.append({"max_length": limit, **cut, "current": limit == found.max_length})


def _labels(found: Audit, data: Prepared, hashes: TextHashes) -> None:
    """Balance of the labels, or of a few different answers."""
    trained = len(data.examples)
    words: dict[int, str] = {}
    for place, (answer, label) in enumerate(zip(hashes.answers[:trained], data.examples.labels, strict=True)):
        if answer and label is None and answer not in words:
            words[answer] = data.examples[place].answer.strip()
            if len(words) > FEW_ANSWERS:
                break
    in_words = 1 < len(words) <= FEW_ANSWERS and trained >= 2 * FEW_ANSWERS
    answers = iter(hashes.answers)
    for side in SIDES:
        counts: Counter[str] = Counter()
        examples = data.side(side).examples
        for place, label in enumerate(examples.labels):
            answer = next(answers)
            if label is not None:
                counts[label] += 1
            elif in_words:
                counts[words.get(answer) or examples[place].answer.strip()] += 1
        found.labels[side] = dict(counts.most_common())
    train, validation = found.labels["train"], found.labels["validation"]
    if not train:
        return
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    if train[most] > 10 * train[least]:
        text = f"the labels are far from balanced: {most!r} {train[most]:,}, {least!r} {train[least]:,} rows"
        found.add("warn", "labels", text)
    if len(train) == 1:
        found.add("warn", "labels", f"there is only one label, {most!r}: nothing to tell apart")
    if unseen := [label for label in validation if label not in train]:
        found.add("warn", "labels", f"labels of the validation rows that no training row has: {', '.join(unseen[:9])}")


def _duplicates(found: Audit, examples: Examples, hashes: TextHashes, trained: int) -> None:
    """Exact and near duplicates, within the rows and between training rows and those held out."""

    def pairs(some: Sequence[tuple[int, int, float]]) -> list[Pair]:
        return [Pair(examples.where(a), examples.where(b), s, content(examples[b])[:160]) for a, b, s in some[:PLACES]]

    same = [(first, number, 1.0) for first, *others in groups(hashes.contents) for number in others]
    across = [pair for pair in same if pair[0] < trained <= pair[1]]
    crossing = {number for _, number, _ in across}
    found.exact, found.exact_rows = pairs(same), len(same)
    prompts = set(hashes.prompts[:trained]) - {0}
    known = {number for number in range(trained, len(examples)) if hashes.prompts[number] in prompts} - crossing
    similar = near(lambda number: normalized(content(examples[number])), hashes.contents, trained)
    found.near, found.near_pairs = pairs(similar.pairs), len(similar.pairs)
    found.near_how = (
        f"{similar.texts:,} different texts compared by MinHash over {duplicates.SHINGLE} characters in a row, "
        f"confirmed exactly; threshold: {duplicates.THRESHOLD:.0%} of the shingles in common; "
        f"the first {duplicates.MOST_CHARACTERS:,} characters of each count"
    )
    if not similar.whole:
        found.near_how += f". Too many to compare them all (at most {duplicates.MOST_TEXTS:,} texts): there may be more"
    close = [each for each in similar.pairs if each[0] < trained <= each[1]]
    found.overlap = pairs(across + close)
    close_rows = len({each[1] for each in close} - crossing)
    found.overlap_rows = {"same": len(crossing), "same_prompt": len(known), "near": close_rows}
    if found.exact_rows:
        level: Level = "warn" if found.exact_rows > len(examples) / 100 else "note"
        text = f"the same as an earlier row: {_share(found.exact_rows, len(examples))}"
        found.add(level, "duplicates", text, [*map(str, found.exact)])
    if found.near_pairs:
        rows = {number for each in similar.pairs for number in each[:2]}
        bound = "" if similar.whole else ", and perhaps more: there are too many to compare them all"
        text = f"nearly the same as another row: {_share(len(rows), len(examples))}{bound}"
        found.add("note", "near duplicates", text, [*map(str, found.near)])
    kinds = {"same": "that are training rows too", "near": "nearly the same as a training row"}
    for key, what in (kinds | {"same_prompt": "whose prompt a training row has"}).items():
        if count := found.overlap_rows[key]:
            places = [str(p) for p in found.overlap if key == ("same" if p.similarity == 1 else "near")]
            of = f"{count:,} of {len(examples) - trained:,}"
            text = f"validation rows {what}: {of}; their score says little about new text"
            found.add("warn", "overlap", text, places)


def _conflicts(found: Audit, examples: Examples, hashes: TextHashes) -> None:
    """The same prompt with another answer: fine for open questions, an error for labels."""
    if examples and examples[0].rejected:
        return
    for group in groups(hashes.prompts):
        first = examples[group[0]]
        answer = normalized(first.answer)
        other = next((e for e in map(examples.read, group[1:]) if normalized(e.answer) != answer), None)
        if other is None:
            continue
        found.conflict_groups += 1
        if len(found.conflicts) < PLACES:
            text = f"{first.answer[:60]!r} or {other.answer[:60]!r}: {prompt(first)[:80]}"
            found.conflicts.append(Pair(first.where, other.where, 1.0, text))
    if found.conflict_groups:
        text = f"prompts with more than one answer: {found.conflict_groups:,}"
        found.add("warn", "conflicts", text, [f"{p.a} and {p.b}: {p.text}" for p in found.conflicts])


def _repeated(found: Audit, examples: Examples, hashes: TextHashes) -> None:
    """One beginning of many prompts, one answer to many (a fifth of the rows): a template, or a mistake in the data."""
    least = max(10, 0.2 * len(examples))
    for begin, count in Counter(hashes.heads).items():
        if begin and count >= least:
            first = last = ""
            for number, own in enumerate(hashes.heads):
                if own == begin:
                    text = beginning(examples[number])
                    first, last = min(first or text, text), max(last, text)
            if first != last:  # what these two share, all share
                text = first[: min(shared_start(first, last), 400)]
                found.repeated.append({"what": "prompts begin", "rows": count, "text": text})
    if not found.labels["train"]:  # where answers are labels, their balance shows it
        for answer, count in Counter(hashes.answers).most_common(6):
            if answer and count >= least:
                text = examples[hashes.answers.index(answer)].answer.strip()
                found.repeated.append({"what": "the answer is", "rows": count, "text": text[:400]})
    for each in found.repeated:
        level: Level = "note" if each["what"].startswith("prompts") else "warn"
        found.add(level, "repeated", f"{each['what']} {each['text'][:80]!r} in {_share(each['rows'], len(examples))}")


def _masks(found: Audit, data: Prepared, template: Template) -> None:
    found.masks = masks(data, template)
    rows, every = data.rows, len(data.rows)
    if not any(rows.learned):
        found.add("stop", "mask", "no training row has a token that is learned")
    if unlearned := [rows.where(number) for number, count in enumerate(rows.learned) if not count]:
        found.add("warn", "mask", f"no token is learned in {_share(len(unlearned), every)}", unlearned)
    chat = data.task.name == "chat"
    ended = set(rows.containing(template.end_ids, learned=True) if chat else range(every))
    if ends := [rows.where(number) for number in range(every) if number not in ended]:
        text = f"the token that ends an answer is cut away, so not learned, in {_share(len(ends), every)}"
        if len(ends) == every:
            text = "the token that ends an answer is learned in no row"
        found.add("stop" if len(ends) == every else "warn", "mask", text, ends)
    wrong, checked = learned_prompts(data, template)
    if wrong:
        found.add("stop", "mask", f"tokens of the prompt are learned in {_share(len(wrong), checked)}", wrong)
    if chat and template.source != "the tokenizer's own":
        text = f"the tokenizer has no chat template; used is {template.source}, which the run saves with its tokenizer"
        found.add("note", "template", text)
    tokenizer = template.tokenizer
    known = tokenizer.unk_token_id is None or tokenizer.unk_token == tokenizer.eos_token
    if lost := [] if known else list(rows.containing({tokenizer.unk_token_id})):
        text = f"text that the tokenizer does not know, and reads as {tokenizer.unk_token}, in "
        found.add("warn", "unknown", text + _share(len(lost), every), [rows.where(number) for number in lost[:PLACES]])
    if cut := sum(data.side(side).counts.cut for side in SIDES):
        found.add("warn", "cut", f"rows cut to {found.max_length:,} tokens, by data.on_long_row: {cut:,}")
    if not data.validation_examples:
        found.add("note", "validation", "no row is held out, so nothing will show whether training helps")
