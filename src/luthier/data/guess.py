"""How rows of unknown columns are to be read: one certain reading, or several to choose from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from luthier.data.columns import LONG, VOCABULARY, Column
from luthier.data.formats.base import FORMATS, Format

LANGUAGES = VOCABULARY["language"]
YES_NO = ({"yes", "no"}, {"true", "false"}, {"yes", "no", "maybe"}, {"0", "1"}, {"是", "否"}, {"对", "错"})
DEFAULT_KEYS = (("speaker", "from"), ("value", "value"))
MOST = 6
"""Readings that a question offers at most."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A format with its columns, and the task where it is not the default of the format."""

    format: str
    columns: Mapping[str, str]
    """Field of the format -> column."""
    task: str = ""

    @property
    def reader(self) -> Format:
        return FORMATS.parse({"name": self.format, **self.columns})

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
        return [f"{key}={quoted(value)}" for key, value in made.items()]


def quoted(text: str) -> str:
    """A text as YAML reads it back: `no` and `1` need quotes."""
    try:
        plain = yaml.safe_load(text) == text and not text.lower().replace(".", "").replace("e", "").isdigit()
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


def guess(rows: Sequence[Mapping[str, Any]]) -> tuple[Reading | None, list[Reading]]:
    """The reading that names and values leave no doubt about, or None; and the readings to choose from."""
    columns = [Column.of(str(name), rows) for name in dict.fromkeys(name for row in rows for name in row)]
    texts = [column for column in columns if column.text]
    labels = [column for column in columns if column.label and not (column.text and column.long)]
    if any(column.name == "text" for column in columns):  # plain text often comes with a few words beside it
        labels = [column for column in labels if column.label_name or column.numbers]
    if dialogues := [_dialogue(column, column.turns) for column in columns if column.turns]:
        return (dialogues[0] if len(dialogues) == 1 else None), [*_preference(columns), *dialogues]
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
    return Reading("sharegpt", {key: name for key, name in fields.items() if (key, name) not in DEFAULT_KEYS})


def _preference(columns: Sequence[Column]) -> list[Reading]:
    """A better and a worse dialogue, of which the better can be learned."""
    sides = [next((c.name for c in columns if c.turns and word in c.words), "") for word in ("chosen", "rejected")]
    return [Reading("preference", {"chosen": sides[0], "rejected": sides[1], "learn": "chosen"})] if all(sides) else []


def _translation(columns: Sequence[Column], texts: Sequence[Column]) -> Reading | None:
    """Two texts named by their languages, also within one column."""
    for column in columns:
        if column.values and isinstance(column.values[0], Mapping):
            keys = [key for key in column.values[0] if str(key).lower() in LANGUAGES]
            if len(keys) == 2:
                return _pairs(f"{column.name}.{keys[0]}", f"{column.name}.{keys[1]}")
    both = [c for c in texts if c.named("language") == 2 or not LANGUAGES.isdisjoint(c.words[:1])]
    return _pairs(both[0].name, both[1].name) if len(both) == 2 else None


def _answered(columns: Sequence[Column], texts: Sequence[Column], labels: Sequence[Column]) -> Reading | None:
    """A prompt and its answer, with the material and a system message."""
    found = _answer(columns, texts) or _lone_answer(texts, labels)
    if found is None or any(_marks(column) for column in labels if column is not found[0]):
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


def _marks(column: Column) -> bool:
    """Does this column label whether question and answer belong together?"""
    named = column.label_name == 6 and column.words[-1] in ("label", "labels", "class", "标签")
    return named and bool(column.numbers or isinstance(column.values[0], bool))


def _prompt(texts: Sequence[Column]) -> Column | None:
    """The prompt: the first of these ways that leaves one column; a way that leaves more stops the search."""
    whole = [column for column in texts if column.named("prompt") == 2]
    if len(whole) == 2:
        whole = [column for column in whole if not column.named("context")]  # `instruction` beside `input`
    prompts = [column for column in texts if column.named("prompt") and not column.named("title")]
    material = [[column for column in texts if column.named("material") >= least] for least in (2, 1)]
    found = next(filter(None, [whole, prompts, *material, texts]), ())
    return found[0] if len(found) == 1 else None


def _lone_answer(texts: Sequence[Column], labels: Sequence[Column]) -> tuple[Column, str] | None:
    """The only other text beside a prompt, where its name says nothing."""
    others = [column for column in texts if not column.named("prompt")]
    if len(texts) != 2 or len(others) != 1 or any(column.label_name for column in labels):
        return None
    return None if others[0].named("text") or others[0].named("title") else (others[0], others[0].name)


def _answer(columns: Sequence[Column], texts: Sequence[Column]) -> tuple[Column, str] | None:
    """The column of the answer and the path to its text; `answers.text.0` is the first of several."""
    ways = []
    for column in columns:
        rank = column.named("answer") * 2
        if rank and column.values and not column.metadata:
            if path := _answer_path(column):
                ways.append((rank, column, path))
        elif (
            column.label_name
            and column in texts
            and column.long
            and any(c.named("prompt") for c in texts if c is not column)
        ):
            ways.append((1, column, column.name))
    best = [way for way in ways if way[0] == max(rank for rank, _, _ in ways)]
    return best[0][1:] if len(best) == 1 else None


def _answer_path(column: Column) -> str:
    first = column.values[0]
    if isinstance(first, list) and first and isinstance(first[0], str):
        return f"{column.name}.0"
    if isinstance(first, Mapping):
        if isinstance(first.get("text"), list):
            return f"{column.name}.text.0"
        key = next((key for key in ("text", "value") if isinstance(first.get(key), str)), None)
        return f"{column.name}.{key}" if key else ""
    numbered = column.numbers and column.label_name
    return column.name if column.strings and not _judgment(column) and not numbered else ""


def _judgment(column: Column) -> bool:
    """Is this a label and not an answer: yes or no, or few short values under a name that labels have too?"""
    found = {str(value).strip().lower() for value in column.values}
    few = column.label and column.distinct <= max(2, len(column.values) // 2) and column.mean < LONG
    return few or any(found <= words for words in YES_NO)


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
