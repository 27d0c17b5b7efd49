"""Formats: how rows become examples, and what is said of rows that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.config import DataConfig
from luthier.data.example import Message, RowError
from luthier.data.formats.base import FORMATS
from luthier.data.prepare import load
from luthier.errors import DataError
from tests.conftest import write_jsonl

ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {
        "instruction": "Say hi",
        "input": "to Bo",
        "output": "Hi Bo",
        "system": "Be kind",
        "history": [["a", "b"]],
    },
    "messages": {
        "messages": [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
        ]
    },
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
    "prompt_completion": {"prompt": "Q", "completion": "A"},
    "classification": {"text": "fine", "label": 1},
    "text": {"text": "just text"},
}


def test_every_format_has_a_row_here() -> None:
    assert set(ROWS) == set(FORMATS.names())


@pytest.mark.parametrize("name", ROWS)
def test_a_format_is_found_from_its_rows(tmp_path: Path, name: str) -> None:
    row = {**ROWS[name], "id": 3}  # columns beside those of the format do not disturb
    rows = [row, {**row, "label": 0}] if name == "classification" else [row] * 3
    data = load(DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", rows)), validation="none"), None)
    assert data.format.name == name
    assert data.task.name == {"text": "complete", "classification": "classify"}.get(name, "chat")


def messages(name: str, row: dict[str, Any], **fields: Any) -> list[tuple[str, str, bool]]:
    return [(m.role, m.content, m.learn) for m in FORMATS.parse({"name": name, **fields}).read(row).messages]


def test_dialogues() -> None:
    assert messages("alpaca", ROWS["alpaca"]) == [
        ("system", "Be kind", False), ("user", "a", False), ("assistant", "b", True),
        ("user", "Say hi\nto Bo", False), ("assistant", "Hi Bo", True),
    ]  # fmt: skip
    assert messages("messages", ROWS["messages"]) == [("user", "Q", False), ("assistant", "A", True)]
    assert messages("sharegpt", ROWS["sharegpt"]) == [
        ("system", "S", False),
        ("user", "Q", False),
        ("assistant", "A", True),
    ]
    assert messages("prompt_completion", ROWS["prompt_completion"]) == [("user", "Q", False), ("assistant", "A", True)]


def test_columns_of_other_names() -> None:
    row = {"frage": "Q", "antwort": "A"}
    assert messages("alpaca", row, instruction="frage", output="antwort")[0] == ("user", "Q", False)
    with pytest.raises(RowError, match=r"no column 'instruction'; the row has frage, antwort") as caught:
        messages("alpaca", row)
    assert caught.value.mend == "name the column with data.format.instruction=COLUMN"


def test_labels_in_words_and_the_question() -> None:
    form = FORMATS.parse({"name": "classification", "names": ["bad", "good"], "prompt": "Good or bad? {text}"})
    example = form.read({"text": "fine", "label": 1})
    assert example.label == "good"
    assert example.messages == (Message("user", "Good or bad? fine"), Message("assistant", "good", learn=True))
    assert form.read({"text": "fine", "label": "0"}).label == "bad"
    assert form.read({"text": "fine", "label": 1.0}).label == "good"
    with pytest.raises(RowError, match="label '2' is neither one of bad, good nor their number"):
        form.read({"text": "fine", "label": 2})
    assert FORMATS.parse("classification").read({"sentence1": "a", "sentence2": "b", "label": 0}).pair == "b"
    assert FORMATS.parse("classification").read({"text": "a", "label_text": "joy"}).label == "joy"


def turns(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("messages", turns(), "no turn"),
        ("messages", turns(("user", "Q")), "ends with a user turn"),
        ("messages", turns(("assistant", "A")), "speaks before the user"),
        ("messages", turns(("user", "Q"), ("user", "Q"), ("assistant", "A")), "two user turns in a row"),
        ("messages", turns(("user", "Q"), ("bot", "A")), "unknown role 'bot'"),
        ("messages", turns(("user", "Q"), ("assistant", None)), "content of turn 2 is null"),
        ("messages", turns(("user", "Q"), ("assistant", " ")), "the assistant message is empty"),
        ("messages", turns(("user", "Q"), ("system", "S")), "system message must come first"),
        ("messages", {"messages": "text"}, "should be a list of turns"),
        ("sharegpt", {"conversations": [{"from": "cat", "value": "meow"}]}, "unknown speaker 'cat'"),
        ("alpaca", {"instruction": "Q", "output": 3}, "output should be text, not int"),
        ("alpaca", {"instruction": "Q", "output": ""}, "the assistant message is empty"),
        ("classification", {"text": "", "label": 1}, "text is empty"),
        ("classification", {"text": "a", "label": None}, "label is empty"),
        ("text", {"text": "  "}, "text is empty"),
    ],
)
def test_a_row_that_cannot_be_read_says_why(name: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError) as caught:
        FORMATS.parse(name).read(row)
    assert said in caught.value.reason


def test_columns_that_fit_no_format_are_named(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"frage": "Q", "antwort": "A"}])
    with pytest.raises(DataError) as caught:
        load(DataConfig(path=str(file)), None)
    assert "fit no known format: frage, antwort" in str(caught.value) and "data.format.name=alpaca" in str(caught.value)
