"""Sentences in the language of the user."""

from __future__ import annotations

import pytest

from luthier.core import language
from tests.conftest import use_catalog

CATALOG = {
    "reading data": "正在读取数据",
    "unknown {0} {1}{2}; choose one of: {3}": "未知的{0} {1}{2}；可选：{3}",
    " (did you mean {0}?)": "（是不是 {0}？）",
    "{0}: {1} rows are refused": "{0}：拒绝了 {1} 行",
    "{0} of {1}": "{1} 中的 {0}",
    "{0} of {1} runs": "{1} 次运行中的 {0} 次",
    "{0} and {{1}} are braces": "{0} 和 {{1}} 是花括号",
    "{0} is finished; delete it": "{0} 已完成；请删除它",
    "no prefix can stand here: {0}": "此处不能放前缀：{0}",
    "is missing": "不存在",
    "; and so is {0}": "，{0} 也是",
}


@pytest.fixture(autouse=True)
def catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    use_catalog(monkeypatch, CATALOG)
    monkeypatch.setattr(language, "_chosen", [])


@pytest.mark.parametrize(
    ("text", "chinese"),
    [
        ("reading data", "正在读取数据"),
        ("data.jsonl: 12 rows are refused", "data.jsonl：拒绝了 12 行"),
        (
            "unknown method 'loar' (did you mean 'lora'?); choose one of: a, b",
            "未知的method 'loar'（是不是 'lora'？）；可选：a, b",
        ),
        ("runs/a is finished; delete it", "runs/a 已完成；请删除它"),
        ("x: 1 rows are refused\n  y: 2 rows are refused", "x：拒绝了 1 行\n  y：拒绝了 2 行"),
        ("x and {1} are braces", "x 和 {1} 是花括号"),
        ("nothing that is known", "nothing that is known"),
        ("some file: reading data", "some file：正在读取数据"),
        ("a, b: c", "a, b: c"),
        ("method prefix: no prefix can stand here: x", "method prefix：此处不能放前缀：x"),
        ("reading data; and so is x", "正在读取数据，x 也是"),
        ("3 of 4", "3 of 4"),  # two letters would fit too much
        ("12 of 40 runs", "40 次运行中的 12 次"),
        ("some runs of many other runs", "some runs of many other runs"),
    ],
)
def test_a_sentence_is_found_by_its_fixed_parts(text: str, chinese: str) -> None:
    assert language.translated(text, "zh") == chinese
    assert language.translated(text, "en") == text


@pytest.mark.parametrize(
    ("text", "chinese"),
    [
        ("runs/a is missing", "runs/a 不存在"),
        ("runs/a is missing: reading data", "runs/a 不存在：正在读取数据"),
        ("what 'the user says is missing' stays", "what 'the user says is missing' stays"),
        ("the mission is missing", "the mission 不存在"),
    ],
)
def test_a_message_is_found_inside_a_text_that_is_no_data(text: str, chinese: str) -> None:
    assert language.translated(text, "zh", inside=True) == chinese
    assert "is missing" in language.translated(text, "zh")


def test_the_pseudo_language_marks_what_the_catalog_has() -> None:
    assert language.translated("x: 1 rows are refused", language.PSEUDO) == "⟦x: 1 rows are refused⟧"
    assert language.translated("nothing that is known", language.PSEUDO) == "nothing that is known"


def test_a_page_fills_places_in_either_language() -> None:
    assert language.filled("{0}: {1} rows are refused", "a", 2, into="zh") == "a：拒绝了 2 行"
    assert language.filled("{0}: {1} rows are refused", "a", 2, into="en") == "a: 2 rows are refused"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LUTHIER_LANG": "zh", "LC_ALL": "en_US.UTF-8"}, "zh"),
        ({"LC_ALL": "zh_CN.UTF-8"}, "zh"),
        ({"LC_MESSAGES": "en_US.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_the_language_is_that_of_the_environment(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LUTHIER_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language.language() == expected


def test_a_chosen_language_comes_first_and_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_LANG", "en")
    language.speak("zh")
    assert language.language() == "zh"
    with pytest.raises(ValueError, match="choose one of: en, zh"):
        language.speak("fr")
