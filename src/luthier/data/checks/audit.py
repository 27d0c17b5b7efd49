"""What is in the data that a run would learn from, and what looks wrong with it. Reads no file and loads no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any, Literal

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
from luthier.data.checks.mask import Mask, endless, learned_prompts, masks
from luthier.data.checks.scripts import scripts
from luthier.data.example import Example
from luthier.data.prepare import Prepared
from luthier.data.template import Template

PERCENTILES = (50, 90, 95, 99)
LIMITS = (256, 512, 1024, 2048)
"""Values of train.max_length of which the report says what they would cut."""
PLACES = 50
"""Pairs or places that are kept of one finding; the count is always of all."""
SHORT = 2
"""An answer of at most this many characters is short."""
PREFIX = 40
"""Characters that prompts must share to count as one template."""
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


def audit(data: Prepared, template: Template, *, lengths: Sequence[int], max_length: int) -> Audit:
    """Look at the encoded data; `lengths` are those of all rows in tokens before a limit."""
    found = Audit(account=data.account(), max_length=max_length)
    refusals = sorted(data.refusals, key=lambda refusal: natural(refusal.where))
    found.refusals = [{"where": refusal.where, "reason": refusal.reason} for refusal in refusals]
    _lengths(found, lengths)
    _labels(found, data)
    examples = [*data.examples, *data.validation_examples]
    found.scripts = scripts(content(example) for example in examples)
    _alike(found, examples, len(data.examples))
    _conflicts(found, examples)
    _answers(found, examples)
    _repeated(found, examples)
    _masks(found, data, template)
    order = ("stop", "warn", "note")
    found.findings.sort(key=lambda finding: order.index(finding.level))
    return found


def prompt(example: Example) -> str:
    """What the model is given: the text to classify, or the user's turns; plain text has none."""
    if example.text:  # a labelled text may stand in a dialogue as well, in words of ours
        return content(example) if example.label is not None else ""
    return "\n".join(message.content for message in example.messages if message.role == "user")


def content(example: Example) -> str:
    """The row's own text, without its label."""
    if example.text:
        return "\n".join(filter(None, (example.text, example.pair)))
    return "\n".join(message.said for message in (*example.messages, *example.rejected[-1:]))


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
            {"max_length": limit, "rows": len(over), "share": len(over) / len(ordered),
             "tokens": sum(over) - limit * len(over), "current": limit == found.max_length}
        )  # fmt: skip


def _labels(found: Audit, data: Prepared) -> None:
    sides = {"train": data.examples, "validation": data.validation_examples}
    words = {example.answer.strip() for example in data.examples if example.label is None and example.messages}
    in_words = 1 < len(words) <= FEW_ANSWERS and len(data.examples) >= 2 * FEW_ANSWERS
    for name, side in sides.items():
        values = [e.answer.strip() if in_words and e.label is None else e.label for e in side]
        found.labels[name] = dict(Counter(value for value in values if value is not None).most_common())
    train, validation = found.labels["train"], found.labels["validation"]
    if not train:
        return
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    if train[most] > 10 * train[least]:
        found.add("warn", "labels", f"the labels are far from balanced: {most!r} {train[most]:,}, {least!r} "
                  f"{train[least]:,} rows")  # fmt: skip
    if len(train) == 1:
        found.add("warn", "labels", f"there is only one label, {most!r}: nothing to tell apart")
    if unseen := [label for label in validation if label not in train]:
        found.add("warn", "labels", f"labels of the validation rows that no training row has: {', '.join(unseen[:9])}")


def _alike(found: Audit, examples: Sequence[Example], trained: int) -> None:
    """Exact and near duplicates, within the rows and between training and validation."""
    keys = [normalised(content(example)) for example in examples]

    def pair(a: int, b: int, similarity: float = 1.0) -> Pair:
        return Pair(examples[a].where, examples[b].where, similarity, content(examples[b])[:160])

    crossing: set[int] = set()
    for group in groups(keys):
        found.exact_rows += len(group) - 1
        inside = [number for number in group if number < trained]
        outside = [number for number in group if number >= trained]
        if inside and outside:
            crossing.update(outside)
            found.overlap += [pair(inside[0], number) for number in outside]
        found.exact += [pair(group[0], number) for number in group[1:]]
    prompts = {normalised(prompt(example)) for example in examples[:trained]} - {""}
    asked = {i for i in range(trained, len(examples)) if normalised(prompt(examples[i])) in prompts} - crossing
    similar = near(keys, trained)
    found.near_pairs, found.near_how = len(similar.pairs), _how(similar)
    found.near = [pair(*each) for each in similar.pairs[:PLACES]]
    across = [each for each in similar.pairs if each[0] < trained <= each[1]]
    close = {each[1] for each in across} - crossing
    found.overlap = (found.overlap + [pair(*each) for each in across])[:PLACES]
    found.overlap_rows = {"same": len(crossing), "same_prompt": len(asked), "near": len(close)}
    whole = len(examples)
    if found.exact_rows:
        level: Literal["warn", "note"] = "warn" if found.exact_rows > whole / 100 else "note"
        found.add(level, "duplicates", f"the same as an earlier row: {_share(found.exact_rows, whole)}",
                  [f"{p.b} = {p.a}" for p in found.exact])  # fmt: skip
    if found.near_pairs:
        rows = {number for each in similar.pairs for number in each[:2]}
        bound = "" if similar.whole else ", and perhaps more: there are too many to compare them all"
        found.add("note", "near duplicates", f"nearly the same as another row: {_share(len(rows), whole)}{bound}",
                  [f"{p.b} ~ {p.a} ({p.similarity:.0%})" for p in found.near])  # fmt: skip
    _overlap(found, len(examples) - trained)
    found.exact = found.exact[:PLACES]


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


def _conflicts(found: Audit, examples: Sequence[Example]) -> None:
    """The same question with another answer: fine for open questions, an error for labels."""
    if any(example.rejected for example in examples):
        return
    for group in groups([normalised(prompt(example) + example.tools) for example in examples]):
        answers: dict[str, int] = {}
        for number in group:
            answers.setdefault(normalised(examples[number].answer), number)
        if len(answers) > 1:
            found.conflict_groups += 1
            first, second = list(answers.values())[:2]
            one, other = examples[first], examples[second]
            said = f"{one.answer[:60]!r} or {other.answer[:60]!r}: {prompt(one)[:80]}"
            found.conflicts.append(Pair(one.where, other.where, 1.0, said))
    if found.conflict_groups:
        found.add("warn", "conflicts", f"prompts with more than one answer: {found.conflict_groups:,}",
                  [f"{p.a} and {p.b}: {p.text}" for p in found.conflicts])  # fmt: skip
    found.conflicts = found.conflicts[:PLACES]


def _answers(found: Audit, examples: Sequence[Example]) -> None:
    chats = [example for example in examples if example.messages and example.label is None]
    short = [example for example in chats if len(example.answer.strip()) <= SHORT]
    if short and not found.labels["train"]:
        text = f"answers of at most {SHORT} characters: {_share(len(short), len(chats))}"
        found.add("warn", "short answers", text, [f"{e.where}: {e.answer.strip()!r}" for e in short])
    if empty := [refusal["where"] for refusal in found.refusals if "empty" in refusal["reason"]]:
        found.add("warn", "empty", f"rows refused for an empty text or answer: {len(empty):,}", empty)


def _repeated(found: Audit, examples: Sequence[Example]) -> None:
    """One beginning of many prompts, one answer to many: a template, or a mistake when the data was made."""
    least = max(FEWEST, LARGE_SHARE * len(examples))
    texts = [prompt(example).strip() or example.text.strip() for example in examples]
    heads: dict[str, list[str]] = {}
    for text in texts:
        if len(text) > PREFIX:
            heads.setdefault(text[:PREFIX], []).append(text)
    for same in heads.values():
        if len(same) >= least and len(set(same)) > 1:
            first, last = min(same), max(same)  # what these two share, all share
            end = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
            found.repeated.append({"what": "prompts begin", "rows": len(same), "text": first[:end][:400]})
    if not found.labels["train"]:  # where answers are labels, their balance says it
        answers = Counter(example.answer.strip() for example in examples if example.messages)
        for answer, count in answers.most_common(5):
            if count >= least:
                found.repeated.append({"what": "the answer is", "rows": count, "text": answer[:400]})
    for each in found.repeated:
        found.add("note" if each["what"].startswith("prompts") else "warn", "repeated",
                  f"{each['what']} {each['text'][:80]!r} in {_share(each['rows'], len(examples))}")  # fmt: skip


def _masks(found: Audit, data: Prepared, template: Template) -> None:
    found.masks = masks(data, template)
    if not any(row.learned for row in data.rows):
        found.add("stop", "mask", "no training row has a token that is learned")
    if unlearned := [row.where for row in data.rows if not row.learned]:
        found.add("warn", "mask", f"no token is learned in {_share(len(unlearned), len(data.rows))}", unlearned)
    if ends := endless(data, template):
        every = len(ends) == len(data.rows)
        text = "the token that ends an answer is learned in no row" if every else (
            f"the token that ends an answer is cut away, so not learned, in {_share(len(ends), len(data.rows))}"
        )  # fmt: skip
        found.add("stop" if every else "warn", "mask", text, ends)
    wrong, looked_at = learned_prompts(data, template)
    if wrong:
        found.add("stop", "mask", f"tokens of the prompt are learned in {_share(len(wrong), looked_at)}", wrong)
    if data.task.name == "chat" and template.source != "the tokenizer's own":
        found.add("note", "template", f"the tokenizer has no chat template; used is {template.source}, which the "
                  "run saves with its tokenizer")  # fmt: skip
    unknown = template.tokenizer.unk_token_id
    if unknown is not None and template.tokenizer.unk_token != template.tokenizer.eos_token:
        lost = [row.where for row in data.rows if unknown in row.ids]
        if lost:
            found.add("warn", "unknown", f"text that the tokenizer does not know, and reads as "
                      f"{template.tokenizer.unk_token}, in {_share(len(lost), len(data.rows))}", lost)  # fmt: skip
    part = found.account["train"]["cut"] + found.account["validation"]["cut"]
    if part:
        found.add("warn", "cut", f"rows cut to {found.max_length:,} tokens, by data.on_long_row: {part:,}")
    if not data.validation_examples:
        found.add("note", "validation", "no row is held out, so nothing will tell whether training helps")


def as_json(found: Audit) -> dict[str, Any]:
    """The audit as it stands in data.json."""
    return {"stops": found.stops, **asdict(found)}
