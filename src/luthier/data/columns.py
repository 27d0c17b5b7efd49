"""What the columns of a data file mean, from their names and their values, where no format has these names.

A column has a kind by its values (text, label, short text, number, nothing to learn) and perhaps a role by its name
(prompt, answer, material, label). Readings are tried in a fixed order: pairs of languages, prompt and answer, text and
label, text alone. Where names and values allow two readings there is no guess: the user is asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from luthier.data.formats.base import FORMATS, Format, lookup

Row = Mapping[str, Any]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PROMPT = _words(
    "question query prompt instruction ask input source src article document dialogue dialog conversation passage "
    "problem user human message request 问题 提问 指令 输入 用户 原文 问 问句 题目 对话"
)
PROMPT_OR_TEXT = _words(
    "text content body title description sentence review comment tweet post 文本 内容 正文 评论 标题 描述"
)
"""The prompt where another column is the answer, else the text of a classification."""
ANSWER = _words(
    "answer response output completion target tgt summary highlight reply abstract headline solution assistant bot "
    "回答 答案 输出 回复 摘要 助手 答 目标"
)
MATERIAL = _words("context background passage document material evidence knowledge 上下文 背景 材料 输入")
SYSTEM = _words("system system_prompt system_message 系统 系统提示")
LABEL = _words(
    "label target sentiment class rating score star polarity outcome verdict emotion intent 标签 情感 情绪 意图 评分"
)
TOPIC = _words("category topic genre cat kind type 类别 分类 类目 领域")
"""Labels as well, but often a remark beside a prompt and its answer."""
LANGUAGES = _words(
    "en de fr es zh ja ko ru it pt nl ar hi tr pl cs ro fi vi th english german french spanish chinese japanese korean "
    "russian italian portuguese arabic 中文 英文 日文 法文 德文 汉语 英语"
)
SPARE = _words(
    "id idx index uuid guid url link md5 hash sha date time timestamp created updated split flag lang language"
)

DATE = re.compile(r"\d{4}[-/.年]\d{1,2}[-/.月]\d{1,2}.*|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}.*")
WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
LONG, SHORT = 20, 8
"""Letters, a Chinese one counted as three: a text by its length alone, and by its length where the name says text."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read the rows."""

    form: Format
    said: str
    """Which column is what, in words."""
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Understood:
    """What the columns mean: one reading, or several between which the user has to choose; or none."""

    readings: tuple[Reading, ...] = ()
    why: str = ""
    """What stands against a single reading."""


class Column(NamedTuple):
    """A column with what its values look like."""

    name: str
    kind: str
    """text, label, short, number, list, or spare."""
    roles: frozenset[str]


@dataclass(slots=True)
class _Columns:
    """All columns, by what they may be."""

    all: list[Column] = field(default_factory=list)

    def having(self, role: str, *kinds: str) -> list[str]:
        return [each.name for each in self.all if role in each.roles and each.kind in kinds]

    @property
    def texts(self) -> list[str]:
        return [each.name for each in self.all if each.kind == "text"]


def understand(rows: Sequence[Row]) -> Understood:
    """The readings of these rows, the likeliest first. More than one: the user has to choose."""
    columns = _Columns([_column(name, [lookup(row, name) for row in rows]) for name in _names(rows)])
    texts = columns.texts
    if any(each.kind == "list" for each in columns.all):
        return _ask(columns, "a column holds lists, such as the choices of a question")
    languages = [name for name in texts if _plain(name.rpartition(".")[2]) in LANGUAGES]
    if len(languages) == 2 and len(texts) == 2:
        return _one(columns, instruction=languages[0], output=languages[1])
    prompts, weak = columns.having("prompt", "text"), columns.having("prompt or text", "text")
    answers = columns.having("answer", "text")
    labels, topics = columns.having("label", "label", "number"), columns.having("topic", "label")
    if len(answers) == 1 and (prompts or weak or len(texts) == 2):
        return _answered(columns, prompts, weak, answers[0], labels, topics)
    return _labeled(columns, labels, topics) if labels or topics or _nameless(columns) else _unlabeled(columns)


def _answered(
    columns: _Columns, prompts: list[str], weak: list[str], answer: str, labels: list[str], topics: list[str]
) -> Understood:
    """A column is the answer by its name."""
    others = [name for name in columns.texts if name != answer]
    asked = [name for name in prompts if name != answer]
    material = [name for name in columns.having("material", "text") if name != answer]
    if labels:
        return _ask(columns, f"the rows have an answer ({answer}) and a label ({labels[0]})")
    if not asked and topics:
        return _labeled(columns, labels, topics)
    sure = [name for name in asked if name not in material] or asked or [n for n in weak if n != answer] or others
    if len(sure) != 1 or len(others) > 4:
        return _ask(columns, f"{' and '.join(sure[:3])} may each be the prompt" if sure else "no column is the prompt")
    material = [name for name in material if name != sure[0]]
    system = columns.having("system", "text", "short")
    given = {"instruction": sure[0], "input": material[0] if len(material) == 1 else "", "output": answer}
    return _one(columns, **given, system=system[0] if len(system) == 1 else "")


def _labeled(columns: _Columns, labels: list[str], topics: list[str]) -> Understood:
    """A column is the label, by its name or because its values are few and short."""
    texts = columns.texts
    named = [each.name for each in columns.all if "prompt or text" in each.roles and each.kind == "text"]
    texts = named if len(texts) > 2 and named else texts
    found = labels or topics or _nameless(columns)
    worded = [name for name in found if _plain(name) in ("label_text", "label_name", "labels_text")]
    found = worded or found
    if len(found) != 1:
        return _ask(columns, f"{', '.join(found[:4])} may each be the label")
    named_so = labels or topics or found[0] in columns.having("answer", "label")
    if not 1 <= len(texts) <= 2 or (len(texts) == 2 and not named_so):
        return _ask(columns, "which columns are text and label does not follow from names and values")
    return _one(columns, text=texts[0], pair=texts[1] if len(texts) == 2 else "", label=found[0])


def _unlabeled(columns: _Columns) -> Understood:
    texts = columns.texts
    if len(texts) == 1:
        return _one(columns, text=texts[0])
    return _ask(columns, "which column is the prompt and which the answer does not follow from their names")


def _nameless(columns: _Columns) -> list[str]:
    """Labels by their values alone."""
    return [each.name for each in columns.all if each.kind == "label"]


def _one(columns: _Columns, **given: str) -> Understood:
    return Understood((_reading(columns, **given),))


def _ask(columns: _Columns, why: str) -> Understood:
    """Readings to choose from: each text as the prompt of each, and each label with the texts."""
    texts, labels = columns.texts, _nameless(columns) + columns.having("label", "number")
    if len(texts) + len(labels) < 2:
        texts = [each.name for each in columns.all if each.kind in ("text", "short")]
    named = columns.having("answer", "text")
    pairs = [(texts.index(p) > texts.index(a), p, a) for a in texts for p in texts if p != a]
    pairs.sort(key=lambda pair: (pair[2] not in named, pair[0]))
    readings = [_reading(columns, instruction=prompt, output=answer) for _, prompt, answer in pairs[:4]]
    marked = [_reading(columns, text=text, label=label) for label in labels for text in texts][:4]
    return Understood(tuple([*readings, *marked, *(_reading(columns, text=text) for text in texts[:2])][:8]), why)


def _reading(columns: _Columns, **given: str) -> Reading:
    """Format alpaca where there is an output, classification where there is a label, else text."""
    kind = "alpaca" if "output" in given else "classification" if "label" in given else "text"
    wanted = {key: name for key, name in given.items() if name or key in ("input", "pair")}
    names = {"instruction": "prompt", "output": "answer", "input": "material", "pair": "second text"}
    said = ", ".join(f"{names.get(key, key)} from {name!r}" for key, name in given.items() if name)
    if kind == "classification" and given.get("pair"):
        said += " (both texts are joined)"
    if kind == "classification" and given["label"] in columns.having("label", "number"):
        said += " (a number: task=regress predicts it)"
    used = set(given.values())
    spare = dict.fromkeys(each.name.partition(".")[0] for each in columns.all if each.name not in used)
    heads = {name.partition(".")[0] for name in used}
    return Reading(FORMATS.parse({"name": kind, **wanted}), said, tuple(name for name in spare if name not in heads))


def settings(form: Format) -> list[str]:
    """The `data.format.KEY=VALUE` that name a format and its columns on the command line."""
    usual = type(form)().spec()
    own = {key: value for key, value in form.spec().items() if key == "name" or value != usual[key]}
    return [f"data.format.{key}={value}" for key, value in own.items()]


def _names(rows: Sequence[Row]) -> list[str]:
    """The columns, with those within an object and the first element of a list as `answers.text.0`."""
    found: dict[str, None] = {}
    for row in rows[:5]:
        for name, value in row.items():
            if isinstance(value, Mapping):
                for key, inner in value.items():
                    if not isinstance(inner, list):
                        found[f"{name}.{key}"] = None
                    elif inner and isinstance(inner[0], str):
                        found[f"{name}.{key}.0"] = None
            else:
                found[str(name)] = None
    return list(found)


def _plain(name: str) -> str:
    """`airlineSentiment` and `Airline Sentiment` as `airline_sentiment`."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\s\-.]+", "_", parted).lower()


def _column(name: str, values: Sequence[Any]) -> Column:
    roles = frozenset(role for part in {name, name.partition(".")[0]} for role in _roles(part))
    there = [value for value in values if value is not None and (not isinstance(value, str) or value.strip())]
    kind = _kind(name, there, roles) if there else "spare"
    return Column(name, kind, roles)


def _roles(name: str) -> list[str]:
    plain = _plain(name)
    parts = [re.sub(r"(?<=[a-z]{3}[^s])s$|\d+$", "", part) for part in plain.split("_") if not part.isdigit()]
    known = {
        "prompt": PROMPT, "prompt or text": PROMPT_OR_TEXT, "answer": ANSWER, "material": MATERIAL, "topic": TOPIC,
    }  # fmt: skip
    if plain in SYSTEM:
        return ["system"]
    found = [role for role, names in known.items() if plain in names or (parts and parts[-1] in names)]
    if LABEL & {plain, *parts} or plain.startswith("is_"):
        found.append("label")
    return found


def _kind(name: str, values: Sequence[Any], roles: frozenset[str]) -> str:
    """What the values look like; `roles` decide where that is not enough."""
    marked = bool(roles & {"label", "topic", "answer"})
    parts = set(_plain(name).split("_"))
    if all(isinstance(value, list) for value in values):
        return "list"
    distinct = len({str(value) for value in values})
    few = distinct <= max(2, len(values) // 2)
    if all(isinstance(value, bool | int) or _is_integer(value) for value in values):
        spare = SPARE & parts or (distinct == len(values) > 2) or (distinct == 1 and not roles & {"label", "topic"})
        labeled = "label" in roles and (few or len(values) < 4 or not SPARE & parts)
        return "label" if labeled or (few and not spare) else "spare"
    if all(isinstance(value, float | int) or _is_number(value) for value in values):
        return "number" if "label" in roles else "spare"
    if not all(isinstance(value, str) for value in values):
        return "spare"
    return _kind_of_strings(values, few, distinct, marked, roles, bool(SPARE & parts))


def _kind_of_strings(
    values: Sequence[str], few: bool, distinct: int, marked: bool, roles: frozenset[str], spare: bool
) -> str:
    length = sum(len(value) + 2 * len(WIDE.findall(value)) for value in values) / len(values)
    spaced = sum(bool(WIDE.search(value)) or " " in value.strip() for value in values) > len(values) / 2
    long, textual = spaced and length >= LONG, roles & {"prompt", "prompt or text", "answer", "material", "system"}
    kind = "short"
    if all(DATE.fullmatch(value.strip()) for value in values):
        kind = "spare"
    elif distinct == 1 and len(values) > 2 and not marked:
        kind = "text" if long else "spare"
    elif (roles & {"label", "topic"} and length <= 3 * LONG and not long) or (
        few and length < 2 * LONG and distinct < len(values)
    ):
        kind = "label"
    elif long or (spaced and textual and length >= SHORT):
        return "text"
    elif "answer" in roles and distinct > len(values) / 2:
        kind = "text"  # short answers: names, numbers in words
    return "spare" if spare and kind in ("short", "label", "text") and not roles & {"label"} else kind


def _is_integer(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[-+]?\d{1,15}", value.strip()))


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[-+]?\d{0,15}(\.\d+)?([eE][-+]?\d+)?", value.strip() or "x"))


def headless(rows: Sequence[Row]) -> bool:
    """Do the names of the columns look like a row of the data, as in a CSV file without a line of names?"""
    names = [str(name).strip() for name in rows[0]] if rows else []
    numbers = sum(bool(re.fullmatch(r"[-+]?\d+(\.\d+)?", name)) for name in names)
    long = sum(
        len(name) + 2 * len(WIDE.findall(name)) > 2 * LONG and (" " in name or WIDE.search(name) is not None)
        for name in names
    )
    return bool(long) or (numbers > 0 and len(names) > 1)
