"""Formats: how rows become examples, and what is said of rows that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError, InputError
from luthier.data.formats.base import FORMATS
from luthier.data.prepare import load
from luthier.recipe.config import DataConfig
from luthier.rendering.example import Example, Message, RowError
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
    "preference": {"prompt": "Q", "chosen": "good", "rejected": "bad"},
    "kto": {"prompt": "Q", "completion": "A", "label": True},
    "prompt_completion": {"prompt": "Q", "completion": "A"},
    "classification": {"text": "fine", "label": 1},
    "text": {"text": "just text"},
}
LEARN = {"preference": "chosen", "kto": "good"}


def test_every_format_has_a_row_here() -> None:
    assert set(ROWS) == set(FORMATS.names())


@pytest.mark.parametrize("name", ROWS)
def test_a_format_is_found_from_its_rows(tmp_path: Path, name: str) -> None:
    row = {**ROWS[name], "id": 3}  # columns beside those of the format do not disturb
    rows = [row, {**row, "label": 0}] if name == "classification" else [row] * 3
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    if name in LEARN:  # found, and refused: no task learns from judgements yet
        with pytest.raises(InputError, match=rf"\(format {name}\), which task chat does not learn from"):
            load(DataConfig(path=path, validation="none"), None)
        form = FORMATS.parse({"name": name, "learn": LEARN[name]})
    else:
        form = None
    data = load(DataConfig(path=path, validation="none", format=form), None)
    assert data.format.name == name
    assert data.task.name == {"text": "complete", "classification": "classify"}.get(name, "chat")


def messages(name: str, row: dict[str, Any], **fields: Any) -> list[tuple[str, str, bool]]:
    return [(m.role, m.content, m.learn) for m in FORMATS.parse({"name": name, **fields}).read(row).messages]


def test_dialogues() -> None:
    assert messages("alpaca", ROWS["alpaca"]) == [
        ("system", "Be kind", False),
        ("user", "a", False),
        ("assistant", "b", True),
        ("user", "Say hi\nto Bo", False),
        ("assistant", "Hi Bo", True),
    ]
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
    assert caught.value.fix == "name the column with data.format.instruction=COLUMN"


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


HUMAN_GPT = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
TWO_TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
OTHER_QUESTION = [{"role": "user", "content": "Other?"}, {"role": "assistant", "content": "B"}]
FOUR_TURNS = [*TWO_TURNS, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So"}]


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
        ("sharegpt", {"conversations": [{"from": "cat", "value": "meow"}]}, "unknown role 'cat'"),
        ("alpaca", {"instruction": "Q", "output": 3}, "output should be text, not int"),
        ("alpaca", {"instruction": "Q", "output": ""}, "the assistant message is empty"),
        ("classification", {"text": "", "label": 1}, "text is empty"),
        ("classification", {"text": "a", "label": None}, "label is empty"),
        ("text", {"text": "  "}, "text is empty"),
        ("preference", {"chosen": "a", "rejected": "b"}, "no column 'prompt'"),
        ("preference", {"prompt": "Q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ("preference", {"prompt": "Q", "chosen": "a", "rejected": ""}, "the assistant message is empty"),
        ("preference", {"prompt": "Q", "chosen": ["a"], "rejected": "b"}, "turn 1 of chosen has no role"),
        ("preference", {"chosen": TWO_TURNS, "rejected": OTHER_QUESTION}, "should begin to differ in an answer"),
        ("preference", {"chosen": TWO_TURNS, "rejected": FOUR_TURNS}, "should begin to differ in an answer"),
        ("kto", {"prompt": "Q", "completion": "A", "label": "perhaps"}, "label should be true or false, not 'perhaps'"),
        ("kto", {"prompt": "Q", "completion": "A", "label": None}, "label should be true or false, not None"),
        ("kto", {"completion": "A", "label": True}, "no column 'prompt'"),
        ("sharegpt", {"conversations": [HUMAN_GPT[0], {"from": "function_call", "value": "{}"}]}, "has no name"),
    ],
)
def test_a_row_that_cannot_be_read_says_why(name: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError) as caught:
        FORMATS.parse(name).read(row)
    assert said in caught.value.reason


def test_columns_that_fit_no_format_are_named(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"width": 3, "height": 4}])
    with pytest.raises(DataError) as caught:
        load(DataConfig(path=str(file)), None)
    assert "no column holds texts that a format could read: width, height" in str(caught.value)
    assert "data.format.instruction" not in str(caught.value)


Q, GOOD, BAD = (Message("user", "Q"), Message("assistant", "good", learn=True), Message("assistant", "bad", learn=True))
EARLIER = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "Q"}]
EARLIER_READ = (Message("user", "a"), Message("assistant", "b"), Q)


@pytest.mark.parametrize(
    ("row", "before"),
    [
        ({"prompt": "Q", "chosen": "good", "rejected": "bad"}, (Q,)),
        ({"question": "Q", "chosen": "good", "rejected": "bad", "system": "S"}, (Message("system", "S"), Q)),
        ({"instruction": "Q", "input": "I", "chosen": "good", "rejected": "bad"}, (Message("user", "Q\nI"),)),
        (
            {
                "prompt": EARLIER,
                "chosen": [{"role": "assistant", "content": "good"}],
                "rejected": [{"role": "assistant", "content": "bad"}],
            },
            EARLIER_READ,
        ),
        (
            {
                "chosen": [*EARLIER, {"role": "assistant", "content": "good"}],
                "rejected": [*EARLIER, {"role": "assistant", "content": "bad"}],
            },
            EARLIER_READ,
        ),
        (
            {
                "prompt": "Q",  # stands in both dialogues too, as in UltraFeedback
                "chosen": [*EARLIER, {"role": "assistant", "content": "good"}],
                "rejected": [*EARLIER, {"role": "assistant", "content": "bad"}],
            },
            EARLIER_READ,
        ),
        (
            {
                "conversations": [{"from": "human", "value": "Q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            (Q,),
        ),
    ],
)
def test_a_pair_is_one_question_with_two_answers(row: dict[str, Any], before: tuple[Message, ...]) -> None:
    example = FORMATS.parse("preference").read(row)
    assert example.messages == (*before, GOOD) and example.rejected == (*before, BAD)
    alone = FORMATS.parse({"name": "preference", "learn": "chosen"}).read(row)
    assert alone.messages == (*before, GOOD) and alone.rejected == ()


def test_answers_of_several_turns_are_learned_from_where_they_differ() -> None:
    sides = {
        side: [
            *TWO_TURNS,
            *turns(("user", "And?"), ("assistant", side), ("user", "More"), ("assistant", "end"))["messages"],
        ]
        for side in ("chosen", "rejected")
    }
    example = FORMATS.parse("preference").read(sides)
    assert (
        [m.learn for m in example.messages] == [m.learn for m in example.rejected] == [False] * 3 + [True, False, True]
    )
    assert (example.messages[3].content, example.rejected[3].content) == ("chosen", "rejected")


def test_judged_answers() -> None:
    form = FORMATS.parse("kto")
    assert form.read({"prompt": "Q", "completion": "good", "label": True}) == Example(messages=(Q, GOOD), label="true")
    dialogue = {"messages": [*EARLIER, {"role": "assistant", "content": "bad"}], "label": "False"}
    assert form.read(dialogue) == Example(messages=(*EARLIER_READ, BAD), label="false")
    assert form.matches({**dialogue, "label": False}) and not form.matches(dialogue), "a text may be any label"
    assert not form.matches({"prompt": "Q", "completion": "A", "label": 1})


@pytest.mark.parametrize(
    ("row", "setting"),
    [(ROWS["preference"], "preference data.format.learn=chosen"), (ROWS["kto"], "kto data.format.learn=good")],
)
def test_judgements_are_refused_with_the_tasks_there_are_and_a_way_on(
    tmp_path: Path, row: dict[str, Any], setting: str
) -> None:
    config = DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", [row] * 3)), validation="none")
    with pytest.raises(
        InputError, match=r"does not learn from, and no other; tasks are chat, classify, complete"
    ) as caught:
        load(config, None)
    assert f"data.format.name={setting} trains on" in caught.value.fix


def test_learning_the_good_answers_counts_the_bad_ones(tmp_path: Path) -> None:
    made = [{"prompt": f"Q{i}", "completion": "A", "label": i % 3 != 0} for i in range(9)]
    form = FORMATS.parse({"name": "kto", "learn": "good"})
    config = DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", made)), validation="none", format=form)
    data = load(config, None)
    assert data.task.name == "chat" and len(data.examples) == 6, "a bad answer is no bad row: nothing stops"
    assert (data.train.read, data.train.refused) == (9, 3)
    assert data.refusals[0].row == made[0] and "judged bad" in data.refusals[0].reason


def test_turns_with_keys_and_names_of_their_own() -> None:
    form = FORMATS.parse(
        {
            "name": "sharegpt",
            "conversations": "log",
            "speaker": "who",
            "value": "says",
            "user": "kunde",
            "assistant": "haus",
            "system_speaker": "regie",
        }
    )
    row = {"log": [{"who": w, "says": w.upper()} for w in ("regie", "kunde", "haus")]}
    assert form.matches(row)
    assert [(m.role, m.content) for m in form.read(row).messages] == [
        ("system", "REGIE"),
        ("user", "KUNDE"),
        ("assistant", "HAUS"),
    ]
    assert messages("sharegpt", {"conversations": HUMAN_GPT, "tools": "[]"})[1] == ("assistant", "A", True)
