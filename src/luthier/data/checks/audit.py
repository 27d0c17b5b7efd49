"""What is in the data that a run would learn from, and what looks wrong with it. Reads no file and loads no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any, Literal

from luthier.core.errors import install_anywhere
from luthier.core.events import Progress
from luthier.data.checks.duplicates import (
    MOST_CHARACTERS,
    MOST_TEXTS,
    SHINGLE,
    THRESHOLD,
    Near,
    groups,
    near,
    normalised,
)
from luthier.data.checks.facts import SHORT, Facts, beginning, content, facts, prompt
from luthier.data.checks.languages import MOST_TEXTS as MOST_LANGUAGE_TEXTS
from luthier.data.checks.languages import available, languages
from luthier.data.checks.mask import Mask, endless, learned_prompts, masks
from luthier.data.prepared import SIDES, Prepared
from luthier.data.store import Examples
from luthier.rendering.chat_template import Template

PERCENTILES = (50, 90, 95, 99)
LIMITS = (256, 512, 1024, 2048)
"""Values of train.max_length of which the report says what they would cut."""
PLACES = 50
"""Pairs or places that are kept of one finding; the count is always of all."""
FEW_ANSWERS = 20
"""A chat with at most this many different answers gives labels in words: their balance is shown."""
LARGE_SHARE = 0.2
"""Share of the rows from which a common beginning of prompts, or one answer, is worth a look."""
FEWEST = 10  # rows below which nothing is called a large share


@dataclass(slots=True)
class Finding:
    """Something to know. `stop`: train would stop; `warn`: look at it; `note`: good to know."""

    level: Literal["stop", "warn", "note"]
    what: str
    text: str
    places: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Pair:
    """Two rows that are the same or nearly so; `similarity` is the share of their common shingles."""

    a: str
    b: str
    similarity: float
    text: str


@dataclass(slots=True)
class Audit:
    """All that `luthier check` found, as it stands in data.json."""

    account: dict[str, Any]
    """Format, task, template, fingerprint, and the counts of both sides."""
    max_length: int
    lengths: dict[str, int] = field(default_factory=dict)
    """Tokens of the rows before anything is cut: rows, p50, p90, p95, p99, max."""
    limits: list[dict[str, Any]] = field(default_factory=list)
    """For values of train.max_length: rows over it, their share, and the tokens behind it."""
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

    @property
    def stops(self) -> bool:
        """Would train stop?"""
        return any(finding.level == "stop" for finding in self.findings)

    def add(self, level: Literal["stop", "warn", "note"], what: str, text: str, places: Sequence[str] = ()) -> None:
        """One more finding."""
        self.findings.append(Finding(level, what, text, list(places[:PLACES])))


def audit(
    data: Prepared,
    template: Template,
    *,
    lengths: Sequence[int],
    max_length: int,
    workers: int = 1,
    progress: Progress | None = None,
) -> Audit:
    """Look at the encoded data; `lengths` are those of all rows in tokens before a limit."""
    found = Audit(account=data.account(), max_length=max_length)
    refusals = sorted(data.refusals, key=lambda refusal: natural(refusal.where))
    found.refusals = [{"where": refusal.where, "reason": refusal.reason} for refusal in refusals]
    _lengths(found, lengths)
    sides = [data.side(side).examples for side in SIDES]
    known = facts(sides, workers, progress or Progress())
    examples = Examples(data.examples.store, (number for side in sides for number in side.numbers))
    _labels(found, data, known)
    found.scripts = dict(known.scripts.most_common())
    _languages(found, examples)
    _alike(found, examples, known, len(data.examples))
    _conflicts(found, examples, known)
    _answers(found, examples, known)
    _repeated(found, examples, known)
    _masks(found, data, template)
    order = ("stop", "warn", "note")
    found.findings.sort(key=lambda finding: order.index(finding.level))
    return found


def natural(where: str) -> tuple[str, int]:
    """Order of places: by file, then by the number of the row."""
    name, _, number = where.rpartition(" ")
    return (name, int(number)) if number.isdecimal() else (where, 0)


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} rows ({part / max(1, whole):.1%})"


def _lengths(found: Audit, lengths: Sequence[int]) -> None:
    if not lengths:
        return
    ordered = sorted(lengths)
    found.lengths = {"rows": len(ordered)}
    found.lengths |= {f"p{p}": ordered[ceil(p / 100 * len(ordered)) - 1] for p in PERCENTILES}
    found.lengths |= {"max": ordered[-1], "tokens": sum(ordered)}
    for limit in sorted({*LIMITS, found.max_length}):
        over = [length for length in ordered if length > limit]
        found.limits.append(
            {
                "max_length": limit,
                "rows": len(over),
                "share": len(over) / len(ordered),
                "tokens": sum(over) - limit * len(over),
                "current": limit == found.max_length,
            }
        )


def _labels(found: Audit, data: Prepared, known: Facts) -> None:
    trained = len(data.examples)
    answers = known.answers[:trained]
    words: dict[int, str] = {}
    for place, (answer, label) in enumerate(zip(answers, data.examples.labels, strict=True)):
        if answer and label is None and answer not in words:
            words[answer] = data.examples[place].answer.strip()
            if len(words) > FEW_ANSWERS:
                break
    in_words = 1 < len(words) <= FEW_ANSWERS and trained >= 2 * FEW_ANSWERS
    begin = 0
    for side in SIDES:
        examples = data.side(side).examples
        said = known.answers[begin : begin + len(examples)]
        values = [
            (words.get(answer) or examples[place].answer.strip()) if in_words and label is None else label
            for place, (answer, label) in enumerate(zip(said, examples.labels, strict=True))
        ]
        found.labels[side] = dict(Counter(value for value in values if value is not None).most_common())
        begin += len(examples)
    train, validation = found.labels["train"], found.labels["validation"]
    if not train:
        return
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    if train[most] > 10 * train[least]:
        found.add(
            "warn",
            "labels",
            f"the labels are far from balanced: {most!r} {train[most]:,}, {least!r} {train[least]:,} rows",
        )
    if len(train) == 1:
        found.add("warn", "labels", f"there is only one label, {most!r}: nothing to tell apart")
    if unseen := [label for label in validation if label not in train]:
        found.add("warn", "labels", f"labels of the validation rows that no training row has: {', '.join(unseen[:9])}")


def _languages(found: Audit, examples: Examples) -> None:
    if not available():
        found.languages_how = f"{install_anywhere('languages')} tells languages as well"
        return
    count = min(len(examples), MOST_LANGUAGE_TEXTS)
    places = (number * len(examples) // count for number in range(count))
    found.languages = languages(content(examples[place]) for place in places)
    found.languages_how = "As py3langid tells them"
    if count < len(examples):
        found.languages_how += f", of {count:,} rows evenly spaced"


class _Texts(Sequence[str]):
    """The normalised texts of examples, each made when it is asked for."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, number: Any) -> Any:
        return normalised(content(self._examples[number]))


def _alike(found: Audit, examples: Examples, known: Facts, trained: int) -> None:
    """Exact and near duplicates, within the rows and between training rows and those held out."""

    def pair(a: int, b: int, similarity: float = 1.0) -> Pair:
        return Pair(examples.where(a), examples.where(b), similarity, content(examples[b])[:160])

    crossing: set[int] = set()
    same: list[tuple[int, int]] = []
    across: list[tuple[int, int, float]] = []
    for group in groups(known.contents):
        found.exact_rows += len(group) - 1
        inside = [number for number in group if number < trained]
        outside = [number for number in group if number >= trained]
        if inside and outside:
            crossing.update(outside)
            across += [(inside[0], number, 1.0) for number in outside]
        same += [(group[0], number) for number in group[1:]]
    found.exact = [pair(*each) for each in same[:PLACES]]
    prompts = set(known.prompts[:trained]) - {0}
    asked = {i for i in range(trained, len(examples)) if known.prompts[i] in prompts} - crossing
    similar = near(_Texts(examples), known.contents, trained)
    found.near_pairs, found.near_how = len(similar.pairs), _how(similar)
    found.near = [pair(*each) for each in similar.pairs[:PLACES]]
    close = [each for each in similar.pairs if each[0] < trained <= each[1]]
    found.overlap = [pair(*each) for each in (across + close)[:PLACES]]
    found.overlap_rows = {
        "same": len(crossing),
        "same_prompt": len(asked),
        "near": len({each[1] for each in close} - crossing),
    }
    whole = len(examples)
    if found.exact_rows:
        level: Literal["warn", "note"] = "warn" if found.exact_rows > whole / 100 else "note"
        found.add(
            level,
            "duplicates",
            f"the same as an earlier row: {_share(found.exact_rows, whole)}",
            [f"{p.b} = {p.a}" for p in found.exact],
        )
    if found.near_pairs:
        rows = {number for each in similar.pairs for number in each[:2]}
        bound = "" if similar.whole else ", and perhaps more: there are too many to compare them all"
        found.add(
            "note",
            "near duplicates",
            f"nearly the same as another row: {_share(len(rows), whole)}{bound}",
            [f"{p.b} ~ {p.a} ({p.similarity:.0%})" for p in found.near],
        )
    _overlap(found, len(examples) - trained)


def _overlap(found: Audit, held_out: int) -> None:
    rows = found.overlap_rows
    same = [f"{p.b} = {p.a}" for p in found.overlap if p.similarity == 1]
    close = [f"{p.b} ~ {p.a} ({p.similarity:.0%})" for p in found.overlap if p.similarity < 1]
    for key, places, what in (
        ("same", same, "that are training rows too"),
        ("near", close, "nearly the same as a training row"),
        ("same_prompt", [], "whose prompt a training row has"),
    ):
        if rows[key]:
            text = f"validation rows {what}: {rows[key]:,} of {held_out:,}; their score says little about new text"
            found.add("warn", "overlap", text, places)


def _how(similar: Near) -> str:
    text = (
        f"{similar.texts:,} different texts compared by MinHash over {SHINGLE} characters in a row, confirmed exactly; "
        f"threshold: {THRESHOLD:.0%} of the shingles in common; the first {MOST_CHARACTERS:,} characters of each count"
    )
    more = f". Too many to compare them all (at most {MOST_TEXTS:,} texts): there may be more"
    return text if similar.whole else text + more


def _conflicts(found: Audit, examples: Examples, known: Facts) -> None:
    """The same question with another answer: fine for open questions, an error for labels."""
    if examples and examples[0].rejected:
        return
    for group in groups(known.prompts):
        answers: dict[str, int] = {}
        for number in group:
            answers.setdefault(normalised(examples[number].answer), number)
            if len(answers) > 1:
                break
        else:
            continue
        found.conflict_groups += 1
        if len(found.conflicts) < PLACES:
            first, second = answers.values()
            one, other = examples[first], examples[second]
            said = f"{one.answer[:60]!r} or {other.answer[:60]!r}: {prompt(one)[:80]}"
            found.conflicts.append(Pair(one.where, other.where, 1.0, said))
    if found.conflict_groups:
        found.add(
            "warn",
            "conflicts",
            f"prompts with more than one answer: {found.conflict_groups:,}",
            [f"{p.a} and {p.b}: {p.text}" for p in found.conflicts],
        )


def _answers(found: Audit, examples: Examples, known: Facts) -> None:
    if known.short and not found.labels["train"]:
        text = f"answers of at most {SHORT} characters: {_share(len(known.short), known.chats)}"
        shown = [examples[number] for number in known.short[:PLACES]]
        found.add("warn", "short answers", text, [f"{e.where}: {e.answer.strip()!r}" for e in shown])
    if empty := [refusal["where"] for refusal in found.refusals if "empty" in refusal["reason"]]:
        found.add("warn", "empty", f"rows refused for an empty text or answer: {len(empty):,}", empty)


def _repeated(found: Audit, examples: Examples, known: Facts) -> None:
    """One beginning of many prompts, one answer to many: a template, or a mistake when the data was made."""
    least = max(FEWEST, LARGE_SHARE * len(examples))
    for begin, count in Counter(known.heads).items():
        if begin and count >= least:
            first = last = ""
            for number, own in enumerate(known.heads):
                if own == begin:
                    text = beginning(examples[number])
                    first, last = min(first or text, text), max(last, text)
            if first != last:  # what these two share, all share
                end = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
                found.repeated.append({"what": "prompts begin", "rows": count, "text": first[:end][:400]})
    if not found.labels["train"]:  # where answers are labels, their balance says it
        for answer, count in Counter(known.answers).most_common(6):
            if answer and count >= least:
                text = examples[known.answers.index(answer)].answer.strip()
                found.repeated.append({"what": "the answer is", "rows": count, "text": text[:400]})
    for each in found.repeated:
        found.add(
            "note" if each["what"].startswith("prompts") else "warn",
            "repeated",
            f"{each['what']} {each['text'][:80]!r} in {_share(each['rows'], len(examples))}",
        )


def _masks(found: Audit, data: Prepared, template: Template) -> None:
    found.masks = masks(data, template)
    if not any(data.rows.learned):
        found.add("stop", "mask", "no training row has a token that is learned")
    if unlearned := [data.rows.where(number) for number, count in enumerate(data.rows.learned) if not count]:
        found.add("warn", "mask", f"no token is learned in {_share(len(unlearned), len(data.rows))}", unlearned)
    if ends := [data.rows.where(number) for number in endless(data, template)]:
        every = len(ends) == len(data.rows)
        text = (
            "the token that ends an answer is learned in no row"
            if every
            else (f"the token that ends an answer is cut away, so not learned, in {_share(len(ends), len(data.rows))}")
        )
        found.add("stop" if every else "warn", "mask", text, ends)
    wrong, looked_at = learned_prompts(data, template)
    if wrong:
        found.add("stop", "mask", f"tokens of the prompt are learned in {_share(len(wrong), looked_at)}", wrong)
    if data.task.name == "chat" and template.source != "the tokenizer's own":
        found.add(
            "note",
            "template",
            f"the tokenizer has no chat template; used is {template.source}, which the run saves with its tokenizer",
        )
    unknown = template.tokenizer.unk_token_id
    if unknown is not None and template.tokenizer.unk_token != template.tokenizer.eos_token:
        lost = list(data.rows.with_token(unknown))
        if lost:
            found.add(
                "warn",
                "unknown",
                f"text that the tokenizer does not know, and reads as "
                f"{template.tokenizer.unk_token}, in {_share(len(lost), len(data.rows))}",
                [data.rows.where(number) for number in lost[:PLACES]],
            )
    part = sum(data.side(side).part.cut for side in SIDES)
    if part:
        found.add("warn", "cut", f"rows cut to {found.max_length:,} tokens, by data.on_long_row: {part:,}")
    if not data.validation_examples:
        found.add("note", "validation", "no row is held out, so nothing will tell whether training helps")


def as_json(found: Audit) -> dict[str, Any]:
    """The audit as it stands in data.json."""
    return {"stops": found.stops, **asdict(found)}
