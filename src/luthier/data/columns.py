"""What a column of unknown data may be, from its name and from what stands in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


def words_of(text: str) -> frozenset[str]:
    """A vocabulary, written as a text."""
    return frozenset(text.split())


PROMPT = words_of(
    "question questions query queries prompt prompts instruction instructions input inputs ask problem user human q "
    "request command utterance goal mr frage pregunta 问题 提问 问 指令 输入 提示 提示词 题目 问句 用户 咨询"
)
"""Names of what is asked."""
MATERIAL = words_of(
    "article document dialogue dialog conversation text context passage source src content body document paragraph "
    "story transcript report meaning long 正文 原文 文章 全文 对话 内容 文本 上下文 背景 材料"
)
"""Names of what a prompt may be about; alone, of a prompt that is to be summed up or translated."""
CONTEXT = words_of("context contexts passage input document article background schema 上下文 背景 材料 输入 文章")
"""Those of them that stand beside a question."""
ANSWER = words_of(
    "answer answers response responses output outputs completion completions target targets reply replies summary "
    "summaries highlights abstract solution solutions assistant bot gpt tgt a ref reference paraphrase sql rewrite "
    "correction translated antwort respuesta 回答 答案 答 输出 回复 摘要 译文 答复 总结 概要 助手 解答 参考答案"
)
"""Names of what is to be learned."""
SYSTEM = words_of("system 系统 系统提示")
TITLE = words_of("title headline headlines subject heading 标题 题目")
TEXT = words_of(
    "text texts sentence sentences review reviews comment comments content body message messages tweet tweets sms utt "
    "utterance statement phrase post verse claim evidence premise hypothesis excerpt abstract plot description "
    "paragraph passage document article story joke quote news email string txt "
    "文本 内容 评论 句子 正文 评价 文章 微博 留言 短信 新闻 描述"
)
"""Names of a text to judge, or to learn as it stands."""
LABEL = (
    words_of(
        "label labels target class sentiment intent emotion polarity y stance gold verdict tag "
        "标签 情感 情绪 意图 倾向 情感倾向 极性"
    ),
    words_of("stars star rating score similarity 评分 星级 分数 打分 得分"),
    words_of(
        "category categories cat genre topic type status quality judgment judgement toxic spam subject kind decision "
        "类别 分类 类型 主题 话题 种类 结果"
    ),
)
"""Names of labels, the surest first."""
META = words_of(
    "id ids idx index uid uuid guid qid pid url urls link links href date datetime timestamp time created crawl split "
    "partition fold lang language locale author authors user username speaker name fname filename file path license "
    "version keyword keywords email count counts votes upvotes likes like views useful helpfulness confidence role "
    "timezone source location metadata model annotator parent age number num turn turns "
    "序号 编号 日期 时间 链接 作者 来源 用户名 昵称 地址 点赞数"
)
"""Names of columns that are about a row and not what it says."""
CHOICES = words_of("choices choice options option endings ending distractor distractors candidates sol 选项")
"""Names of the answers that a question leaves to choose from; no format has those."""
LANGUAGES = words_of(
    "en de fr es it pt nl ru zh ja ko ar hi tr pl cs uk vi th id sv fi da ro hu el he fa bn ta ur cn "
    "eng deu fra spa zho "
    "english german french spanish italian portuguese dutch russian chinese japanese korean arabic hindi turkish "
    "polish czech ukrainian vietnamese thai indonesian swedish 中文 英文 英语 汉语 日文 日语 法语 德语 俄语 韩语"
)
SPEAKERS = words_of("role from speaker")
WORDS = words_of("value content text")
"""Keys of a turn: who speaks, and what is said."""

IDENTIFIER = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{18,}|[0-9a-f]{16,64}|https?://\S+|\d{4}-\d\d?-\d\d?\b.{0,20}"
)
NUMBER = re.compile(r"[-+]?\d{1,15}(\.\d{1,15})?")
HAN = re.compile(r"[\u3400-\u9fff]")
LONG = 20
"""Characters from which a column of strings without a telling name holds texts; a Chinese one counts for three."""
SHORT = 40
"""Characters that a label has at most."""


def tokens(name: str) -> list[str]:
    """The words of a name: `questionText` and `question_text` have two. A number behind a word is a word."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=\d)|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return re.findall(r"\d+|[^\W\d_]+", parted.lower())


def size(text: str) -> int:
    """Length of a text, where a Chinese character counts for three."""
    return len(text) + 2 * len(HAN.findall(text))


@dataclass(frozen=True)
class Column:
    """One column of the first rows."""

    name: str
    values: Sequence[Any]
    rows: int

    @classmethod
    def of(cls, name: str, rows: Sequence[Mapping[str, Any]]) -> Column:
        """The column `name` of these rows, without what is empty."""
        values = [row.get(name) for row in rows]
        full = [value for value in values if value not in (None, "", [], {}) and str(value).strip()]
        return cls(name, full, len(rows))

    @cached_property
    def words(self) -> list[str]:
        """The words of its name."""
        return tokens(self.name)

    def named(self, vocabulary: frozenset[str]) -> int:
        """2 where the whole name is in the vocabulary, 1 where a word of it is, else 0."""
        words = [word for word in self.words if not word.isdigit()]
        if "".join(words) in vocabulary:
            return 2
        words = [word for word in words if len(word) > 1]  # a letter is a name by itself alone: q, a, sentence_A
        return int(any(word in vocabulary or (HAN.search(word) and _within(word, vocabulary)) for word in words))

    @cached_property
    def strings(self) -> bool:
        """Is every value a string?"""
        return bool(self.values) and all(isinstance(value, str) for value in self.values)

    @cached_property
    def numbers(self) -> list[float]:
        """Its values where all of them are numbers, also as a csv file has them; else none."""
        made = []
        for value in self.values:
            text = str(value).strip() if isinstance(value, str | int | float) else ""
            if not NUMBER.fullmatch(text):
                return []
            made.append(float(text))
        return made

    @cached_property
    def fractions(self) -> bool:
        """Are its values numbers that are not all whole?"""
        return any(not number.is_integer() for number in self.numbers)

    @cached_property
    def different(self) -> int:
        """How many different values it has."""
        return len({str(value) for value in self.values})

    @cached_property
    def mean(self) -> float:
        """Mean size of its values as text."""
        return sum(size(str(value)) for value in self.values) / max(1, len(self.values))

    @cached_property
    def meta(self) -> bool:
        """Is this about the row: empty, an id, a date, an address, a count?"""
        if not self.values:
            return True
        if isinstance(self.values[0], list | Mapping):
            return False
        if all(isinstance(value, str) and IDENTIFIER.fullmatch(value.strip()) for value in self.values):
            return True
        about = bool(self.words) and (
            self.words[-1] in META
            or (len(self.words) > 1 and self.words[-1].isdigit() and self.words[-2] in META)
            or any(word in ("id", "ids", "qid", "url", "date", "count", "confidence", "votes") for word in self.words)
            or self.named(META) == 2
            or (self.words[-1].endswith("id") and self.different > len(self.values) / 2)
            or any(HAN.search(word) and _within(word, META) and self.mean < LONG for word in self.words)
        )
        dated = all(any(sign.isdigit() for sign in str(value)) for value in self.values) and self.mean < 2 * LONG
        judged = self.label_name and self.numbers and self.different <= self.rows / 2  # such as `Class Index`
        if about and (dated or not self.long) and not judged:
            return True
        counted = bool(self.numbers) and not self.fractions
        return counted and self.different > max(20, len(self.values) * 0.6) and not self.label_name

    @cached_property
    def label_name(self) -> int:
        """How much its name is that of a label: 6 where it is nothing else, down to 1, else 0."""
        if self.words[:1] == ["is"] and len(self.words) > 1:
            return 6
        found = [(self.named(names), 3 - tier) for tier, names in enumerate(LABEL)]
        return max((2 * rank if whole == 2 else rank for whole, rank in found if whole), default=0)

    @cached_property
    def whole_label_name(self) -> bool:
        """Is its name that of a label and nothing else?"""
        return self.words[:1] == ["is"] or self.words == ["gold", "label"] or any(self.named(n) == 2 for n in LABEL)

    @cached_property
    def long(self) -> bool:
        """Are these texts, whatever their name?"""
        spaced = sum(" " in str(value).strip() or bool(HAN.search(str(value))) for value in self.values)
        return self.strings and self.mean >= LONG and spaced > len(self.values) / 2 and not self.numbers

    @cached_property
    def text(self) -> bool:
        """May this be a text to judge, to ask or to answer?"""
        if not self.strings or self.meta or self.numbers:
            return False
        telling = any(self.named(names) for names in (PROMPT, ANSWER, TEXT, TITLE, MATERIAL))
        several = self.different > 2 or self.rows < 4 or self.name == "text"
        return self.long or (telling and several) or self.named(LANGUAGES) == 2

    @cached_property
    def label(self) -> bool:
        """May these be labels: short, and few or of a label's name?"""
        if self.meta or not self.values or not all(isinstance(v, str | int | float) for v in self.values):
            return False
        if self.fractions:
            return True
        few = self.different <= max(2, len(self.values) // 2) and self.rows >= 4
        if self.numbers or isinstance(self.values[0], bool):
            return (few and self.different > 1) or (bool(self.label_name) and self.different <= max(20, self.rows / 2))
        short = self.mean <= SHORT and sum(len(str(v).split()) for v in self.values) <= 4 * len(self.values)
        return short and ((few and self.different > 1 and len(self.values) == self.rows) or bool(self.label_name))

    @cached_property
    def stem(self) -> str:
        """Its name without the number or letter that tells one of a pair from the other."""
        return re.sub(r"(?<![^\W_])[ab12](?![^\W_])|(?<=[^\W\d])[12]$|(?<=[a-z])[AB]$|(?<=_)[ab]$", "", self.name)

    @cached_property
    def turns(self) -> tuple[str, str] | None:
        """Keys of who speaks and of what is said, where its values are lists of turns."""
        if not self.values or not all(isinstance(value, list) and value for value in self.values):
            return None
        first = self.values[0][0]
        if not isinstance(first, Mapping):
            return None
        speaker = next((key for key in first if key in SPEAKERS), None)
        words = next((key for key in first if key in WORDS), None)
        return (speaker, words) if speaker and words else None


def _within(word: str, vocabulary: frozenset[str]) -> bool:
    """Chinese names are written without spaces, so a word of two characters or more may stand within."""
    return any(len(each) > 1 and HAN.match(each) and each in word for each in vocabulary)
