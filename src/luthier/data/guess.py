"""How rows of unknown columns are to be read: one reading that is sure, or several to choose from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from luthier.data.columns import (
    ANSWER,
    CHOICES,
    CONTEXT,
    LANGUAGES,
    LONG,
    MATERIAL,
    PROMPT,
    SYSTEM,
    TEXT,
    TITLE,
    Column,
    words_of,
)
from luthier.data.formats.base import FORMATS, Format

FIRST = words_of("premise claim question query headline title 标题 问题")
SECOND = words_of(
    "hypothesis evidence sentence passage context document body text content description abstract plot review answer "
    "正文 内容 文本 回答"
)
"""Names of the two texts of a pair."""
YES = ({"yes", "no"}, {"true", "false"}, {"yes", "no", "maybe"}, {"0", "1"}, {"是", "否"}, {"对", "错"})
USUAL = (("speaker", "from"), ("value", "value"))
MOST = 6
"""Readings that a question offers at most."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A format with its columns, and the task where it is not the format's own."""

    format: str
    columns: Mapping[str, str]
    """Field of the format -> column."""
    task: str = ""

    @property
    def reader(self) -> Format:
        """The format as a recipe has it."""
        return FORMATS.parse({"name": self.format, **self.columns})

    def said(self) -> str:
        """The reading in words."""
        parts = {key: f"{name!r}" for key, name in self.columns.items()}
        match self.format:
            case "classification":
                texts = parts["text"] + (f" and {parts['pair']} as a pair" if "pair" in parts else "")
                what = "number" if self.task == "regress" else "label"
                return f"{what} {parts['label']} of the text {texts}"
            case "text":
                return f"plain text {parts['text']}"
            case "prompt_completion":
                return f"prompt {parts['prompt']}, answer {parts['completion']}"
            case "alpaca":
                more = "".join(f", {key} {parts[key]}" for key in ("input", "system") if key in parts)
                return f"prompt {parts['instruction']}{more}, answer {parts['output']}"
            case "preference":
                return f"the better answers {parts['chosen']}"
        return f"dialogues {next(iter(parts.values()))}"

    def settings(self) -> list[str]:
        """The overrides that choose this reading."""
        made = {"data.format.name": self.format, **{f"data.format.{key}": name for key, name in self.columns.items()}}
        made |= {"task": self.task} if self.task else {}
        return [f"{key}={spelled(value)}" for key, value in made.items()]


def spelled(text: str) -> str:
    """A text as YAML reads it back: `no` and `1` need quotes."""
    try:
        plain = yaml.safe_load(text) == text and not text.lower().replace(".", "").replace("e", "").isdigit()
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


def guess(rows: Sequence[Mapping[str, Any]]) -> tuple[Reading | None, list[Reading]]:
    """The reading that names and content leave no doubt about, or None; and the readings to choose from."""
    columns = [Column.of(str(name), rows) for name in dict.fromkeys(name for row in rows for name in row)]
    texts = [column for column in columns if column.text]
    labels = [column for column in columns if column.label and not (column.text and column.long)]
    if any(column.name == "text" for column in columns):  # texts to learn as they stand often have a few words beside
        labels = [column for column in labels if column.label_name or column.numbers]
    if dialogues := [_dialogue(column, column.turns) for column in columns if column.turns]:
        return (dialogues[0] if len(dialogues) == 1 else None), [*_judged(columns), *dialogues]
    if (found := _translation(columns, texts)) is not None:
        return found, [found]
    offered = _offers(texts, labels)
    letters = sum(len(column.name) == 1 and column.name.upper() in "ABCD" for column in columns)
    if letters >= 3 or any(column.named(CHOICES) for column in columns):
        return None, offered
    found = _answered(columns, texts, labels) or _labelled(columns, texts, labels) or _plain(columns, texts, labels)
    return found, [found] if found else offered


def _dialogue(column: Column, keys: tuple[str, str]) -> Reading:
    """A column of lists of turns, with these keys for who speaks and what is said."""
    speakers = {str(turn.get(keys[0])) for value in column.values for turn in value if isinstance(turn, Mapping)}
    if keys == ("role", "content") and speakers <= {"user", "assistant", "system", "tool", "function"}:
        return Reading("messages", {"messages": column.name})
    fields = {"conversations": column.name, "speaker": keys[0], "value": keys[1]}
    return Reading("sharegpt", {key: name for key, name in fields.items() if (key, name) not in USUAL})


def _judged(columns: Sequence[Column]) -> list[Reading]:
    """A better and a worse dialogue, of which the better can be learned."""
    sides = [next((c.name for c in columns if c.turns and word in c.words), "") for word in ("chosen", "rejected")]
    return [Reading("preference", {"chosen": sides[0], "rejected": sides[1], "learn": "chosen"})] if all(sides) else []


def _translation(columns: Sequence[Column], texts: Sequence[Column]) -> Reading | None:
    """Two texts whose names are those of languages, also within one column."""
    for column in columns:
        if column.values and isinstance(column.values[0], Mapping):
            keys = [key for key in column.values[0] if str(key).lower() in LANGUAGES]
            if len(keys) == 2:
                return Reading(
                    "prompt_completion",
                    {"prompt": f"{column.name}.{keys[0]}", "completion": f"{column.name}.{keys[1]}"},
                )
    both = [
        column
        for column in texts
        if column.named(LANGUAGES) == 2 or (column.words[:1] and column.words[0] in LANGUAGES)
    ]
    if len(both) == 2:
        return Reading("prompt_completion", {"prompt": both[0].name, "completion": both[1].name})
    return None


def _answered(columns: Sequence[Column], texts: Sequence[Column], labels: Sequence[Column]) -> Reading | None:
    """A prompt and its answer, with what it is about and a system message."""
    found = _answer(columns, texts) or _lone_answer(texts, labels)
    if found is None or any(_marks(column) for column in labels if column is not found[0]):
        return None
    answer, path = found
    system = next((c for c in columns if c.named(SYSTEM) and c.strings and c is not answer), None)
    prompt = _prompt([column for column in texts if column not in (answer, system)])
    if prompt is None:
        return None
    about = [c for c in columns if c not in (prompt, answer, system) and c.named(CONTEXT) == 2 and c.strings]
    if not prompt.named(PROMPT):
        about = []
        if any(c.whole_label_name and c.numbers for c in labels if c is not answer):
            return None  # a review with its title and its stars
    if len(about) > 1:
        return None
    if not about and system is None:
        return Reading("prompt_completion", {"prompt": prompt.name, "completion": path})
    more = {"input": about[0].name} if about else {}
    more |= {"system": system.name} if system is not None else {}
    return Reading("alpaca", {"instruction": prompt.name, **more, "output": path})


def _marks(column: Column) -> bool:
    """Does this column say of question and answer whether they belong together?"""
    named = column.label_name == 6 and column.words[-1] in ("label", "labels", "class", "标签")
    return named and bool(column.numbers or isinstance(column.values[0], bool))


def _prompt(texts: Sequence[Column]) -> Column | None:
    """The column of what is asked."""
    whole = [column for column in texts if column.named(PROMPT) == 2]
    if len(whole) == 2:
        whole = [column for column in whole if not column.named(CONTEXT)]  # `instruction` beside `input`
    asking = [column for column in texts if column.named(PROMPT) and not column.named(TITLE)]
    about = [[column for column in texts if column.named(MATERIAL) >= least] for least in (2, 1)]
    return _only([whole, asking, *about, texts])


def _lone_answer(texts: Sequence[Column], labels: Sequence[Column]) -> tuple[Column, str] | None:
    """The one other text beside a prompt, whose name says nothing."""
    asked = [column for column in texts if column.named(PROMPT)]
    others = [column for column in texts if column not in asked]
    if len(asked) != 1 or len(others) != 1 or any(column.label_name for column in labels):
        return None
    return None if others[0].named(TEXT) or others[0].named(TITLE) else (others[0], others[0].name)


def _answer(columns: Sequence[Column], texts: Sequence[Column]) -> tuple[Column, str] | None:
    """The column of the answer and the path to its text; `answers.text.0` is the first of several."""
    ways = []
    for column in columns:
        rank = column.named(ANSWER) * 2
        if rank and column.values and not column.meta:
            first = column.values[0]
            path = ""
            if isinstance(first, list) and first and isinstance(first[0], str):
                path = f"{column.name}.0"
            elif isinstance(first, Mapping) and isinstance(first.get("text"), list):
                path = f"{column.name}.text.0"
            elif isinstance(first, Mapping):
                key = next((key for key in ("text", "value") if isinstance(first.get(key), str)), None)
                path = f"{column.name}.{key}" if key else ""
            elif column.strings and not _judgement(column) and not (column.numbers and column.label_name):
                path = column.name
            if path:
                ways.append((rank, column, path))
        elif (
            column.label_name
            and column in texts
            and column.long
            and any(c.named(PROMPT) for c in texts if c is not column)
        ):
            ways.append((1, column, column.name))
    best = [way for way in ways if way[0] == max(rank for rank, _, _ in ways)]
    return best[0][1:] if len(best) == 1 else None


def _judgement(column: Column) -> bool:
    """Yes and no, or few short values under a name that labels have too: a label and not an answer."""
    found = {str(value).strip().lower() for value in column.values}
    if any(found <= words for words in YES):
        return True
    return column.label and column.different <= max(2, len(column.values) // 2) and column.mean < LONG


def _labelled(columns: Sequence[Column], texts: Sequence[Column], labels: Sequence[Column]) -> Reading | None:
    """A text, or a pair, and its label."""
    label = _label(labels)
    if label is None:
        return None
    rest: Sequence[Column] = [column for column in texts if column is not label]
    if not rest:  # short ones
        rest = [c for c in columns if c.strings and not c.meta and c is not label and not c.numbers and not c.label]
    chosen = list(rest) if len(rest) == 1 else _pair(rest)
    if not chosen:
        return None
    fields = {"text": chosen[0].name, **({"pair": chosen[1].name} if len(chosen) == 2 else {}), "label": label.name}
    return Reading("classification", fields, "regress" if label.fractions else "")


def _label(labels: Sequence[Column]) -> Column | None:
    """The one column that is the label, or None where there is more than one to choose from."""
    named = [column for column in labels if column.label_name]
    whole = [column for column in named if column.whole_label_name]
    exact = [
        column
        for column in whole
        if column.name.lower() in ("label", "labels", "标签", "gold_label", "target", "class")
    ]
    for some in (exact, whole):
        best = [column for column in some if column.label_name == max(each.label_name for each in some)]
        if some:
            rivals = [column for column in labels if not column.label_name and column.numbers]
            sure = len(best) == 1 and (best[0].label_name > 2 or not rivals)  # else one of several marks
            return best[0] if sure else None
    left = named or labels
    return left[0] if len(left) == 1 and (left[0].label_name or left[0].different <= left[0].rows / 3) else None


def _pair(texts: Sequence[Column]) -> list[Column]:
    """The two texts that belong together, none where that is not certain."""
    for one in texts:
        for other in texts:
            if (
                one is not other
                and one.stem == other.stem
                and one.stem != one.name
                and texts.index(one) < texts.index(other)
            ):
                return [one, other]
    firsts = [column for column in texts if column.named(FIRST)]
    seconds = [column for column in texts if column.named(SECOND) and column not in firsts]
    return [firsts[0], seconds[0]] if len(firsts) == len(seconds) == 1 else []


def _plain(columns: Sequence[Column], texts: Sequence[Column], labels: Sequence[Column]) -> Reading | None:
    """One text, and nothing that could be its label or its answer."""
    if labels or any(column.label_name and isinstance(v, list) for column in columns for v in column.values[:1]):
        return None
    lists = [
        c for c in columns if any(isinstance(v, list) and all(isinstance(i, str) for i in v) for v in c.values[:1])
    ]
    if len(texts) > 1:  # beside a title, `text` is meant
        texts = [c for c in texts if c.name == "text"] if all(c.name == "text" or c.named(TITLE) for c in texts) else []
    if len(texts) != 1 or texts[0].named(ANSWER) or any(column.mean > texts[0].mean for column in lists):
        return None
    return Reading("text", {"text": texts[0].name})


def _only(ways: Sequence[Sequence[Column]]) -> Column | None:
    """The first way that leaves exactly one column; a way that leaves more stops the search."""
    for way in ways:
        if way:
            return way[0] if len(way) == 1 else None
    return None


def _offers(texts: Sequence[Column], labels: Sequence[Column]) -> list[Reading]:
    """Readings to choose from, the likeliest first."""
    made = []
    ordered = sorted(labels, key=lambda column: -column.label_name)
    pair = _pair(texts)
    judged = sorted(texts, key=lambda c: (-c.named(TEXT), -c.mean))[:1]
    for label in ordered:
        chosen = [column for column in (pair or judged) if column is not label]
        if chosen:
            fields = {
                "text": chosen[0].name,
                **({"pair": chosen[1].name} if len(chosen) == 2 else {}),
                "label": label.name,
            }
            made.append(Reading("classification", fields, "regress" if label.fractions else ""))
    answers = [column for column in texts if column.named(ANSWER)]
    asked = sorted((c for c in texts if c not in answers), key=lambda c: (-c.named(PROMPT), -c.named(MATERIAL)))
    if asked and answers:
        orders = [(asked[0], answer) for answer in answers]
    else:
        orders = [(texts[i], texts[1 - i]) for i in (0, 1)] if len(texts) == 2 else []
    dialogues = [Reading("prompt_completion", {"prompt": a.name, "completion": b.name}) for a, b in orders]
    made = [*dialogues[:3], *made] if answers or not labels else [*made[: MOST - 2], *dialogues]
    return (made or [Reading("text", {"text": column.name}) for column in texts])[:MOST]
