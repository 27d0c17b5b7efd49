"""How rows of unknown columns are to be read, from names and values: one certain reading, or several to choose from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from luthier.core.shell import setting

_WORDS = yaml.safe_load((Path(__file__).parent / "vocabulary.yaml").read_text(encoding="utf-8"))
VOCABULARY = {key: frozenset(words.split()) for key, words in _WORDS.items()}
LABEL = ("label 1", "label 2", "label 3")
IDENTIFIER = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{18,}|[0-9a-f]{16,64}|https?://\S+|\d{4}-\d\d?-\d\d?\b.{0,20}"
)
NUMBER = re.compile(r"[-+]?\d{1,15}(\.\d{1,15})?")
HAN = re.compile(r"[\u3400-\u9fff]")
LONG = 20
"""Characters from which a column of strings without a telling name holds texts; a Chinese character counts as three."""
SHORT = 40
"""Characters that a label has at most."""


def size(text: str) -> int:
    """Length of a text, where a Chinese character counts as three."""
    return len(text) + 2 * len(HAN.findall(text))


YES_NO = ({"yes", "no"}, {"true", "false"}, {"yes", "no", "maybe"}, {"0", "1"}, {"是", "否"}, {"对", "错"})
MOST = 6
"""Readings that a question offers at most."""


class Column:
    """One column of the first rows, without its empty values."""

    def __init__(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        values = [row.get(name) for row in rows]
        self.name, self.rows = name, len(rows)
        self.values = [value for value in values if value not in (None, "", [], {}) and str(value).strip()]
        split = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=\d)|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
        self.words = re.findall(r"\d+|[^\W\d_]+", split.lower())
        """The words of the name: `questionText` and `question_text` have two. A number after a word is a word."""
        self.strings = bool(self.values) and all(isinstance(value, str) for value in self.values)
        texts = [str(value).strip() if isinstance(value, str | int | float) else "" for value in self.values]
        self.numbers = [float(text) for text in texts] if all(map(NUMBER.fullmatch, texts)) else []
        """The values where all of them are numbers, also as text in a csv file; else none."""
        self.fractions = any(not number.is_integer() for number in self.numbers)
        self.distinct = len({str(value) for value in self.values})
        self.mean = sum(size(str(value)) for value in self.values) / max(1, len(self.values))
        """Mean size of the values as text."""

    def named(self, kind: str) -> int:
        """2 where the whole name is in this vocabulary, 1 where a word of it is, else 0."""
        words = [word for word in self.words if not word.isdigit()]
        if "".join(words) in VOCABULARY[kind]:
            return 2
        words = [word for word in words if len(word) > 1]  # one letter counts only as a whole name: q, a, sentence_A
        return int(any(word in VOCABULARY[kind] or _contains(word, kind) for word in words))

    @cached_property
    def metadata(self) -> bool:
        """Is this about the row: empty, an id, a date, an address, a count?"""
        if not self.values:
            return True
        if isinstance(self.values[0], list | Mapping):
            return False
        if all(isinstance(value, str) and IDENTIFIER.fullmatch(value.strip()) for value in self.values):
            return True
        words, known = self.words, VOCABULARY["metadata"]
        about = bool(words) and (
            words[-1] in known
            or (len(words) > 1 and words[-1].isdigit() and words[-2] in known)
            or not {"id", "ids", "qid", "url", "date", "count", "confidence", "votes"}.isdisjoint(words)
            or self.named("metadata") == 2
            or (words[-1].endswith("id") and self.distinct > len(self.values) / 2)
            or any(_contains(word, "metadata") and self.mean < LONG for word in words)
        )
        dated = all(any(sign.isdigit() for sign in str(value)) for value in self.values) and self.mean < 2 * LONG
        judged = self.label_name and self.numbers and self.distinct <= self.rows / 2  # such as `Class Index`
        if about and (dated or not self.long) and not judged:
            return True
        counted = bool(self.numbers) and not self.fractions
        return counted and self.distinct > max(20, len(self.values) * 0.6) and not self.label_name

    @cached_property
    def label_name(self) -> int:
        """How much the name is that of a label: 6 where it is nothing else, down to 1, else 0."""
        if self.words[:1] == ["is"] and len(self.words) > 1:
            return 6
        found = [(self.named(kind), 3 - tier) for tier, kind in enumerate(LABEL)]
        return max((2 * rank if whole == 2 else rank for whole, rank in found if whole), default=0)

    @cached_property
    def whole_label_name(self) -> bool:
        """Is the name that of a label and nothing else?"""
        return self.words[:1] == ["is"] or self.words == ["gold", "label"] or any(self.named(k) == 2 for k in LABEL)

    @cached_property
    def long(self) -> bool:
        """Are these texts, whatever their name?"""
        spaced = sum(" " in str(value).strip() or bool(HAN.search(str(value))) for value in self.values)
        return self.strings and self.mean >= LONG and spaced > len(self.values) / 2 and not self.numbers

    @cached_property
    def text(self) -> bool:
        """May this be a text to classify, a prompt or an answer?"""
        if not self.strings or self.metadata or self.numbers:
            return False
        telling = any(map(self.named, ("prompt", "answer", "text", "title", "material")))
        several = self.distinct > 2 or self.rows < 4 or self.name == "text"
        return self.long or (telling and several) or self.named("language") == 2

    @cached_property
    def label(self) -> bool:
        """May these be labels: short, and few or with a label's name?"""
        if self.metadata or not self.values or not all(isinstance(v, str | int | float) for v in self.values):
            return False
        if self.fractions:
            return True
        few = self.distinct <= max(2, len(self.values) // 2) and self.rows >= 4
        if self.numbers or isinstance(self.values[0], bool):
            return (few and self.distinct > 1) or (bool(self.label_name) and self.distinct <= max(20, self.rows / 2))
        short = self.mean <= SHORT and sum(len(str(v).split()) for v in self.values) <= 4 * len(self.values)
        return short and ((few and self.distinct > 1 and len(self.values) == self.rows) or bool(self.label_name))

    @cached_property
    def headless(self) -> bool:
        """Is the name one more value: a number above numbers, a long text above texts, or a value that is there?"""
        name = self.name.strip()
        if NUMBER.fullmatch(name):
            return bool(self.numbers)
        sentence = self.long and size(name) >= LONG and len(name.split()) > 4
        return sentence or (name in self.values and self.distinct < len(self.values))

    @cached_property
    def stem(self) -> str:
        """The name without the number or letter by which two columns of a pair differ."""
        return re.sub(r"(?<![^\W_])[ab12](?![^\W_])|(?<=[^\W\d])[12]$|(?<=[a-z])[AB]$|(?<=_)[ab]$", "", self.name)

    @cached_property
    def turns(self) -> tuple[str, str] | None:
        """Keys of the speaker and of the text, where the values are lists of turns."""
        if not self.values or not all(isinstance(value, list) and value for value in self.values):
            return None
        first = self.values[0][0]
        if not isinstance(first, Mapping):
            return None
        speaker = next((key for key in first if key in ("role", "from", "speaker")), None)
        content = next((key for key in first if key in ("value", "content", "text")), None)
        return (speaker, content) if speaker and content else None


def _contains(word: str, kind: str) -> bool:
    """Is a Chinese word of this vocabulary inside the word? Chinese names are written without spaces."""
    return any(len(each) > 1 and HAN.match(each) and each in word for each in VOCABULARY[kind])


@dataclass(frozen=True, slots=True)
class Reading:
    """A format with its columns, and the task where it is not the default of the format."""

    format: str
    columns: Mapping[str, str]
    """Field of the format -> column."""
    task: str = ""

    def __str__(self) -> str:
        parts = {key: f"{name!r}" for key, name in self.columns.items()}
        match self.format:
            case "classification":
                pair = f" and {parts['pair']} as a pair" if "pair" in parts else ""
                return f"{'number' if self.task else 'label'} {parts['label']} of the text {parts['text']}{pair}"
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
        return [setting(key, value) for key, value in made.items()]


def guess(rows: Sequence[Mapping[str, Any]]) -> tuple[Reading | None, list[Reading]]:
    """The reading that names and values leave no doubt about, or None; and the readings to choose from."""
    columns = [Column(str(name), rows) for name in dict.fromkeys(name for row in rows for name in row)]
    texts = [column for column in columns if column.text]
    labels = [column for column in columns if column.label and not (column.text and column.long)]
    if any(column.name == "text" for column in columns):  # plain text often comes with a few words beside it
        labels = [column for column in labels if column.label_name or column.numbers]
    if dialogues := [_dialogue(column, column.turns) for column in columns if column.turns]:
        sides = [next((c.name for c in columns if c.turns and word in c.words), "") for word in ("chosen", "rejected")]
        better = {"chosen": sides[0], "rejected": sides[1], "learn": "chosen"}
        pairs = [Reading("preference", better)] if all(sides) else []
        return (dialogues[0] if len(dialogues) == 1 else None), [*pairs, *dialogues]
    if (found := _translation(columns, texts)) is not None:
        return found, [found]
    offered = _offers(texts, labels)
    letters = sum(len(column.name) == 1 and column.name.upper() in "ABCD" for column in columns)
    if letters >= 3 or any(column.named("choices") for column in columns):
        return None, offered
    found = _answered(columns, texts, labels) or _labeled(columns, texts, labels) or _plain(columns, texts, labels)
    return found, [found] if found else offered


def _pairs(prompt: str, completion: str) -> Reading:
    return Reading("prompt_completion", {"prompt": prompt, "completion": completion})


def _classified(texts: Sequence[Column], label: Column) -> Reading:
    pair = {"pair": texts[1].name} if len(texts) == 2 else {}
    fields = {"text": texts[0].name, **pair, "label": label.name}
    return Reading("classification", fields, "regress" if label.fractions else "")


def _dialogue(column: Column, keys: tuple[str, str]) -> Reading:
    """A column of lists of turns, with these keys of speaker and text."""
    speakers = {str(turn.get(keys[0])) for value in column.values for turn in value if isinstance(turn, Mapping)}
    if keys == ("role", "content") and speakers <= {"user", "assistant", "system", "tool", "function"}:
        return Reading("messages", {"messages": column.name})
    fields = {"conversations": column.name, "speaker": keys[0], "value": keys[1]}
    usual = {"speaker": "from", "value": "value"}
    return Reading("sharegpt", {key: name for key, name in fields.items() if usual.get(key) != name})


def _translation(columns: Sequence[Column], texts: Sequence[Column]) -> Reading | None:
    """Two texts named by their languages, also within one column."""
    for column in columns:
        if column.values and isinstance(column.values[0], Mapping):
            keys = [key for key in column.values[0] if str(key).lower() in VOCABULARY["language"]]
            if len(keys) == 2:
                return _pairs(f"{column.name}.{keys[0]}", f"{column.name}.{keys[1]}")
    both = [c for c in texts if c.named("language") == 2 or not VOCABULARY["language"].isdisjoint(c.words[:1])]
    return _pairs(both[0].name, both[1].name) if len(both) == 2 else None


def _answered(columns: Sequence[Column], texts: Sequence[Column], labels: Sequence[Column]) -> Reading | None:
    """A prompt and its answer, with the material and a system message."""
    found = _answer(columns, texts, labels)
    named = [c for c in labels if c.label_name == 6 and c.words[-1] in ("label", "labels", "class", "标签")]
    judged = [column for column in named if column.numbers or isinstance(column.values[0], bool)]
    if found is None or any(column is not found[0] for column in judged):  # do question and answer belong together?
        return None
    answer, path = found
    system = next((c for c in columns if c.named("system") and c.strings and c is not answer), None)
    prompt = _prompt([column for column in texts if column not in (answer, system)])
    if prompt is None:
        return None
    context = [c for c in columns if c not in (prompt, answer, system) and c.named("context") == 2 and c.strings]
    if not prompt.named("prompt"):
        context = []
        if any(c.whole_label_name and c.numbers for c in labels if c is not answer):
            return None  # a review with its title and its stars
    if len(context) > 1:
        return None
    if not context and system is None:
        return _pairs(prompt.name, path)
    more = {"input": context[0].name} if context else {}
    more |= {"system": system.name} if system is not None else {}
    return Reading("alpaca", {"instruction": prompt.name, **more, "output": path})


def _prompt(texts: Sequence[Column]) -> Column | None:
    """The prompt: the first of these ways that leaves one column; a way that leaves more stops the search."""
    whole = [column for column in texts if column.named("prompt") == 2]
    if len(whole) == 2:
        whole = [column for column in whole if not column.named("context")]  # `instruction` beside `input`
    prompts = [column for column in texts if column.named("prompt") and not column.named("title")]
    material = [[column for column in texts if column.named("material") >= least] for least in (2, 1)]
    found = next(filter(None, [whole, prompts, *material, texts]), ())
    return found[0] if len(found) == 1 else None


def _answer(columns: Sequence[Column], texts: Sequence[Column], labels: Sequence[Column]) -> tuple[Column, str] | None:
    """The column of the answer and the path to its text; `answers.text.0` is the first of several."""
    ways = []
    for column in columns:
        rank = column.named("answer") * 2
        if rank and column.values and not column.metadata:
            if path := _answer_path(column):
                ways.append((rank, column, path))
        elif column.label_name and column in texts and column.long:
            ways += [(1, column, column.name)] if any(c.named("prompt") for c in texts if c is not column) else []
    best = [way for way in ways if way[0] == max(rank for rank, _, _ in ways)]
    if len(best) == 1:
        return best[0][1:]
    # The only other text beside a prompt, where its name says nothing.
    lone = [column for column in texts if not column.named("prompt")]
    if len(texts) != 2 or len(lone) != 1 or any(column.label_name for column in labels):
        return None
    return None if lone[0].named("text") or lone[0].named("title") else (lone[0], lone[0].name)


def _answer_path(column: Column) -> str:
    first = column.values[0]
    if isinstance(first, list) and first and isinstance(first[0], str):
        return f"{column.name}.0"
    if isinstance(first, Mapping):
        if isinstance(first.get("text"), list):
            return f"{column.name}.text.0"
        key = next((key for key in ("text", "value") if isinstance(first.get(key), str)), None)
        return f"{column.name}.{key}" if key else ""
    if not column.strings or (column.numbers and column.label_name):
        return ""
    # A label and not an answer: yes or no, or few short values under a name that labels have too.
    found = {str(value).strip().lower() for value in column.values}
    few = column.label and column.distinct <= max(2, len(column.values) // 2) and column.mean < LONG
    return "" if few or any(found <= words for words in YES_NO) else column.name


def _labeled(columns: Sequence[Column], texts: Sequence[Column], labels: Sequence[Column]) -> Reading | None:
    """A text, or a pair, and its label."""
    label = _label(labels)
    if label is None:
        return None
    rest = [column for column in texts if column is not label]
    if not rest:  # short texts
        rest = [c for c in columns if c.strings and not (c.metadata or c is label or c.numbers or c.label)]
    chosen = rest if len(rest) == 1 else _pair(rest)
    return _classified(chosen, label) if chosen else None


def _label(labels: Sequence[Column]) -> Column | None:
    """The one column that is the label, or None where there are several to choose from."""
    named = [column for column in labels if column.label_name]
    whole = [column for column in named if column.whole_label_name]
    exact = [c for c in whole if c.name.lower() in ("label", "labels", "标签", "gold_label", "target", "class")]
    if some := exact or whole:
        best = [column for column in some if column.label_name == max(each.label_name for each in some)]
        rivals = [column for column in labels if not column.label_name and column.numbers]
        sure = len(best) == 1 and (best[0].label_name > 2 or not rivals)  # else one of several scores
        return best[0] if sure else None
    left = named or labels
    return left[0] if len(left) == 1 and (left[0].label_name or left[0].distinct <= left[0].rows / 3) else None


def _pair(texts: Sequence[Column]) -> list[Column]:
    """The two texts that belong together, none where that is not certain."""
    for place, one in enumerate(texts):
        for other in texts[place + 1 :]:
            if one.stem == other.stem != one.name:
                return [one, other]
    firsts = [column for column in texts if column.named("first of pair")]
    seconds = [column for column in texts if column.named("second of pair") and column not in firsts]
    return [firsts[0], seconds[0]] if len(firsts) == len(seconds) == 1 else []


def _plain(columns: Sequence[Column], texts: Sequence[Column], labels: Sequence[Column]) -> Reading | None:
    """One text, and nothing that could be its label or its answer."""
    lists = [column for column in columns if column.values and isinstance(column.values[0], list)]
    if labels or any(column.label_name for column in lists):
        return None
    if len(texts) > 1:  # beside a title, `text` is meant
        titled = all(column.name == "text" or column.named("title") for column in texts)
        texts = [column for column in texts if titled and column.name == "text"]
    if len(texts) != 1 or texts[0].named("answer"):
        return None
    lists = [column for column in lists if all(isinstance(item, str) for item in column.values[0])]
    return None if any(column.mean > texts[0].mean for column in lists) else Reading("text", {"text": texts[0].name})


def _offers(texts: Sequence[Column], labels: Sequence[Column]) -> list[Reading]:
    """Readings to choose from, the likeliest first."""
    likeliest = _pair(texts) or sorted(texts, key=lambda c: (-c.named("text"), -c.mean))[:1]
    ordered = sorted(labels, key=lambda column: -column.label_name)
    chosen = [([column for column in likeliest if column is not label], label) for label in ordered]
    made = [_classified(some, label) for some, label in chosen if some]
    answers = [column for column in texts if column.named("answer")]
    prompts = sorted((c for c in texts if c not in answers), key=lambda c: (-c.named("prompt"), -c.named("material")))
    if prompts and answers:
        orders = [(prompts[0], answer) for answer in answers]
    else:
        orders = [(texts[i], texts[1 - i]) for i in (0, 1)] if len(texts) == 2 else []
    dialogues = [_pairs(prompt.name, answer.name) for prompt, answer in orders]
    made = [*dialogues[:3], *made] if answers or not labels else [*made[: MOST - 2], *dialogues]
    return (made or [Reading("text", {"text": column.name}) for column in texts])[:MOST]
