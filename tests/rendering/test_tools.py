"""Rows with tools: every layout of tools, calls and results becomes the same example, and half a call says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.data.formats.base import FORMATS
from luthier.data.prepare import load
from luthier.recipe.config import DataConfig
from luthier.rendering.example import Example, Message, RowError, chat
from luthier.rendering.tools import parse, read_calls, read_tools
from tests.conftest import write_jsonl

WEATHER = {
    "name": "weather",
    "description": "Weather of a town.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
WRAPPED = [{"type": "function", "function": WEATHER}]
TOOLS = json.dumps(WRAPPED)
ARGUMENTS = {"city": "Köln", "days": 3, "exact": True}
FUNCTION = {"name": "weather", "arguments": ARGUMENTS}
CALLS = json.dumps([{"type": "function", "function": FUNCTION}], ensure_ascii=False)
WITH_ID = json.dumps([{"type": "function", "id": "c1", "function": FUNCTION}], ensure_ascii=False)
RESULT = '{"sky": "grey"}'


def read(name: str, row: dict[str, Any], **fields: Any) -> Example:
    return FORMATS.parse({"name": name, **fields}).read(row)


def expected(calls: str = CALLS, identity: str = "") -> tuple[Message, ...]:
    return (
        Message("user", "Q"),
        Message("assistant", "", learn=True, tool_calls=calls),
        Message("tool", RESULT, name="weather", tool_call_id=identity),
        Message("assistant", "Grey.", learn=True),
    )


def openai(call: dict[str, Any], result: dict[str, Any], **row: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": None, **call},
            {"role": "tool", "content": RESULT, **result},
            {"role": "assistant", "content": "Grey."},
        ],
        **row,
    }


IN_TEXT = {"name": "weather", "arguments": json.dumps(ARGUMENTS)}


@pytest.mark.parametrize(
    ("row", "calls", "identity"),
    [
        (openai({"tool_calls": [{"type": "function", "function": FUNCTION}]}, {}), CALLS, ""),
        (openai({"tool_calls": [{"type": "function", "function": IN_TEXT}]}, {"name": "weather"}), CALLS, ""),
        (openai({"tool_calls": [{"id": "c1", "function": IN_TEXT}]}, {"tool_call_id": "c1"}), WITH_ID, "c1"),
        (openai({"tool_calls": [{"id": "c1", "function": IN_TEXT}]}, {"name": "weather"}), WITH_ID, "c1"),
        (openai({"tool_calls": json.dumps([FUNCTION])}, {"tool_call_id": None}), CALLS, ""),
        (openai({"function_call": IN_TEXT}, {"role": "function", "name": "weather"}), CALLS, ""),
        (openai({"tool_calls": [FUNCTION]}, {"content": json.loads(RESULT)}), CALLS, ""),
        (openai({"content": [{"type": "tool_call", "value": json.dumps(FUNCTION)}]}, {}), CALLS, ""),
    ],
    ids=["object", "text", "id", "id from the call", "all text", "legacy", "result as object", "parts"],
)
def test_openais_layouts(row: dict[str, Any], calls: str, identity: str) -> None:
    example = read("messages", row)
    assert example.messages == expected(calls, identity) and example.tools == ""
    hash(example)
    judged = read("kto", {**row, "label": True})
    assert judged.messages == tuple(replace(m, learn=i == 3) for i, m in enumerate(expected(calls, identity)))


@pytest.mark.parametrize(
    ("columns", "tools"),
    [
        ({"tools": WRAPPED}, TOOLS),
        ({"tools": TOOLS}, TOOLS),
        ({"tools": [WEATHER]}, TOOLS),
        ({"tools": json.dumps([WEATHER])}, TOOLS),
        ({"tools": [json.dumps(WEATHER)]}, TOOLS),
        ({"tools": [{"type": "function", **WEATHER}]}, TOOLS),
        ({"tools": [{**WRAPPED[0], "strict": None}]}, TOOLS),
        ({"functions": [WEATHER]}, TOOLS),
        ({"tools": [], "functions": [WEATHER]}, TOOLS),
        ({"tools": "[]"}, ""),
        ({"tools": "null"}, ""),
        ({"tools": ""}, ""),
        ({"tools": None}, ""),
        ({"werkzeug": [WEATHER]}, ""),
    ],
)
def test_tools_as_list_as_text_bare_and_wrapped(columns: dict[str, Any], tools: str) -> None:
    row = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], **columns}
    assert read("messages", row).tools == tools
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    assert read("sharegpt", {"conversations": turns, **columns}).tools == tools
    assert read("alpaca", {"instruction": "Q", "output": "A", **columns}).tools == tools
    assert read("prompt_completion", {"prompt": "Q", "completion": "A", **columns}).tools == tools
    assert read("kto", {"prompt": "Q", "completion": "A", "label": True, **columns}).tools == tools
    assert read("preference", {"prompt": "Q", "chosen": "A", "rejected": "B", **columns}).tools == tools


def test_a_column_of_another_name_and_none() -> None:
    row = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "werkzeug": [WEATHER]}
    assert read("messages", row, tools="werkzeug").tools == TOOLS
    assert read("messages", {**row, "tools": "a hammer"}, tools="").tools == ""


def sharegpt(*turns: tuple[str, str], **row: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": says} for who, says in turns], **row}


def test_sharegpts_turns() -> None:
    call = json.dumps(FUNCTION)
    asked = [("human", "Q"), ("function_call", call), ("observation", RESULT), ("gpt", "Grey.")]
    example = read("sharegpt", sharegpt(*asked, tools=json.dumps([WEATHER])))
    assert example == Example(messages=expected(), tools=TOOLS)
    assert read("sharegpt", sharegpt(*asked[:1], ("function_call", f"[{call}]"), *asked[2:])).messages == expected()
    thought = read("sharegpt", sharegpt(*asked[:1], ("function_call", f"<think>hm</think>\n{call}"), *asked[2:]))
    assert thought.messages[1] == Message("assistant", "<think>hm</think>", learn=True, tool_calls=CALLS)
    renamed = sharegpt(("human", "Q"), ("ruf", call), ("echo", RESULT), ("gpt", "Grey."))
    assert read("sharegpt", renamed, tool_call="ruf", tool_result="echo").messages == expected()
    mixed = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "", "tool_calls": [FUNCTION]}]
    fields = {"conversations": "messages", "speaker": "role", "value": "content"}
    assert read("sharegpt", {"messages": mixed}, **fields).messages == expected()[:2], "the openai formatting"
    assert read("sharegpt", sharegpt(*asked[:2])).answer == CALLS, "calls may be the answer"


def test_one_observation_for_several_calls_is_parted() -> None:
    calls = json.dumps([FUNCTION, {"name": "clock", "arguments": {}}])
    turns = [("human", "Q"), ("function_call", calls), ("observation", '["grey", {"h": 9}]'), ("gpt", "Grey, at 9.")]
    made = read("sharegpt", sharegpt(*turns)).messages
    assert made[2:4] == (Message("tool", "grey", name="weather"), Message("tool", '{"h": 9}', name="clock"))
    for other in ("grey", '["grey"]'):
        with pytest.raises(RowError, match="turn 4: the call of 'clock' before it has no result"):
            read("sharegpt", sharegpt(*turns[:2], ("observation", other), turns[3]))


def test_judged_and_preferred_answers_may_be_calls() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [FUNCTION]}
    row = {"prompt": "Q", "chosen": [call], "rejected": "I cannot know.", "tools": [WEATHER]}
    example = read("preference", row)
    assert example.messages == expected()[:2] and example.rejected[1].content == "I cannot know."
    assert example.tools == TOOLS
    example = read("kto", {"prompt": "Q", "completion": call, "label": True, "tools": [WEATHER]}, learn="good")
    assert example == Example(messages=expected()[:2], tools=TOOLS)


USER, CALLING, TOLD, ANSWER = (
    Message("user", "Q"),
    Message("assistant", "", tool_calls=CALLS),
    Message("tool", "grey"),
    Message("assistant", "A"),
)
TWO = Message(
    "assistant", "", tool_calls=read_calls([{**FUNCTION, "id": "a"}, {"name": "clock", "arguments": {}}], "x")
)
IDS = Message(
    "assistant",
    "",
    tool_calls=json.dumps([{"id": name, "function": {"name": f"f{name}", "arguments": {}}} for name in "ab"]),
)


@pytest.mark.parametrize(
    "turns",
    [
        [USER, CALLING],
        [USER, CALLING, TOLD, ANSWER],
        [USER, CALLING, TOLD, CALLING, TOLD, ANSWER, USER, CALLING],
        [USER, CALLING, TOLD, USER, ANSWER],
        [Message("system", "S"), USER, Message("assistant", "I look.", tool_calls=CALLS), Message("tool", ""), ANSWER],
        [USER, TWO, TOLD, TOLD, ANSWER],
        [USER, IDS, Message("tool", "1", tool_call_id="b"), Message("tool", "2", tool_call_id="a"), ANSWER],
    ],
)
def test_dialogues_that_stand(turns: list[Message]) -> None:
    made = chat(turns)
    assert [m.learn for m in made] == [m.role == "assistant" for m in turns]
    assert [m.all_text for m in made] == [m.all_text for m in turns]


def test_a_result_finds_its_call() -> None:
    made = chat([USER, IDS, Message("tool", "1", tool_call_id="b"), Message("tool", "2"), ANSWER])
    assert [(m.name, m.tool_call_id) for m in made[2:4]] == [("fb", "b"), ("fa", "a")]
    made = chat([USER, IDS, Message("tool", "1", name="fb"), Message("tool", "2"), ANSWER])
    assert [(m.name, m.tool_call_id) for m in made[2:4]] == [("fb", "b"), ("fa", "a")]


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([USER, TOLD, ANSWER], "turn 2: a tool result without a call before it"),
        ([TOLD, ANSWER], "turn 1: a tool result without a call before it"),
        ([USER, ANSWER, TOLD], "turn 3: a tool result without a call before it"),
        ([USER, CALLING, TOLD, TOLD, ANSWER], "turn 4: more tool results than calls"),
        ([USER, CALLING, TOLD], "the dialogue ends with a tool turn, so there is no answer to learn"),
        ([USER, CALLING, ANSWER], "turn 3: the call of 'weather' before it has no result"),
        ([USER, CALLING, USER, ANSWER], "turn 3: the call of 'weather' before it has no result"),
        ([USER, TWO, TOLD, ANSWER], "turn 4: the call of 'clock' before it has no result"),
        (
            [USER, CALLING, Message("tool", "x", tool_call_id="9"), ANSWER],
            "turn 3: the tool result is of call '9'; open calls are none",
        ),
        (
            [USER, IDS, Message("tool", "x", tool_call_id="9"), ANSWER],
            "turn 3: the tool result is of call '9'; open calls are 'a', 'b'",
        ),
        (
            [USER, IDS, *[Message("tool", "x", tool_call_id="a")] * 2, ANSWER],
            "turn 4: the tool result is of call 'a'; open calls are 'b'",
        ),
        (
            [USER, CALLING, Message("tool", "x", name="clock"), ANSWER],
            "turn 3: the tool result is of 'clock'; open calls are of weather",
        ),
        ([Message("user", "Q", tool_calls=CALLS), ANSWER], "turn 1: the user calls a tool, which only the assistant"),
        ([CALLING], "turn 1: the assistant speaks before the user"),
        ([USER, CALLING, TOLD, ANSWER, ANSWER], "turn 5: two assistant turns in a row"),
        ([USER, CALLING, TOLD, Message("assistant", " ")], "turn 4: the assistant message is empty"),
    ],
)
def test_dialogues_that_do_not(turns: list[Message], said: str) -> None:
    with pytest.raises(RowError) as caught:
        chat(turns)
    assert said in caught.value.reason


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ("half", "the tool call of turn 2 is not JSON (Expecting value"),
        ([{"id": "1", "type": "function"}], "tool call 1 of turn 2 has no name"),
        ([{}], "tool call 1 of turn 2 has no name"),
        ([FUNCTION, {"function": {"name": " ", "arguments": {}}}], "tool call 2 of turn 2 has no name"),
        ([{"function": "weather"}], "should have an object for its function, not str"),
        ([["weather"]], "tool call 1 of turn 2 should be an object, not list"),
        ([7], "tool call 1 of turn 2 should be an object, not int"),
        ([{"name": "f"}], "tool call 1 of turn 2 (f) has no arguments, not even {}"),
        ([{"name": "f", "parameters": {}}], "tool call 1 of turn 2 (f) has no arguments"),
        ([{"name": "f", "arguments": "{"}], "arguments of tool call 1 of turn 2 is not JSON"),
        ([{"name": "f", "arguments": "[1]"}], "arguments of tool call 1 of turn 2 should be an object, not list"),
        ([{"name": "f", "arguments": 3}], "arguments of tool call 1 of turn 2 should be an object, not int"),
        ([{"name": "f", "arguments": {"a": float("nan")}}], "cannot be written as JSON"),
        ([{"name": "f", "arguments": {"a": "\0"}}], "holds a NUL character"),
        ([{"name": "f", "arguments": {"\ud800": 1}}], "holds half a character"),
        ([{**FUNCTION, "id": "a"}] * 2, "tool call 2 of turn 2 has the id of an earlier one, 'a'"),
        ([{**FUNCTION, "id": [1]}], "tool call 1 of turn 2 has an id that is not text"),
    ],
)
def test_calls_that_are_half_there(calls: Any, said: str) -> None:
    with pytest.raises(RowError) as caught:
        read("messages", openai({"tool_calls": calls}, {}))
    assert said in caught.value.reason


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("a hammer", "tools is not JSON (Expecting value"),
        ('{"name": "f"}', "tools should be a list of tools, not dict"),
        (WEATHER, "tools should be a list of tools, not dict"),
        (7, "tools should be a list of tools, not int"),
        (["{"], "tool 1 of tools is not JSON"),
        ([7], "tool 1 of tools should be an object, not int"),
        ([WEATHER, {"description": "f"}], "tool 2 of tools has no name"),
        ([{"type": "function", "function": {}}], "tool 1 of tools has no name"),
        ([{"type": "web_search"}], "tool 1 of tools is of type 'web_search'; known is 'function'"),
    ],
)
def test_tools_that_are_none(tools: Any, said: str) -> None:
    for name, row in (
        ("messages", openai({"tool_calls": [FUNCTION]}, {})),
        ("sharegpt", sharegpt(("human", "Q"), ("gpt", "A"))),
    ):
        with pytest.raises(RowError) as caught:
            read(name, {**row, "tools": tools})
        assert said in caught.value.reason


def test_text_of_another_type_is_not_taken_for_an_answer() -> None:
    parts = [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "A"}]
    row = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": parts}]}
    with pytest.raises(RowError, match="content of turn 2 has parts that are not text, of type 'reasoning'"):
        read("messages", row)


def test_empty_arguments_and_ids_that_are_numbers() -> None:
    for nothing in ({}, "{}", "", None):
        assert parse(read_calls({"name": "f", "arguments": nothing}, "x"))[0]["function"]["arguments"] == {}
    assert parse(read_calls([{**FUNCTION, "id": 7}], "x"))[0]["id"] == "7"
    assert json.loads(read_tools('[{"name": "f", "parameters": {"default": null}}]', "x"))[0]["function"] == {
        "name": "f",
        "parameters": {"default": None},
    }, "JSON text is kept to the letter"


def test_rows_with_other_tools_or_calls_are_not_the_same(tmp_path: Path) -> None:
    one, other = openai({"tool_calls": [FUNCTION]}, {}), openai({"tool_calls": [{**FUNCTION, "arguments": {}}]}, {})
    rows = [one, other, {**one, "tools": [WEATHER]}, one]
    config = DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", rows)), validation="none", deduplicate="exact")
    data = load(config, None)
    assert data.format.name == "messages" and len(data.examples) == 3 and data.train.duplicates == 1


def test_the_check_tells_calls_and_tools_apart(tmp_path: Path) -> None:
    from luthier.core.events import Progress
    from luthier.data.checks.audit import audit
    from luthier.rendering.chat_template import Template
    from tests.rendering.test_template_families import family_tokenizer

    def row(city: str, tools: list[Any]) -> dict[str, Any]:
        call = {"name": "weather", "arguments": {"city": city}}
        turns = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        return {"messages": turns, "tools": tools}

    def found(*rows: dict[str, Any]) -> Any:
        file = write_jsonl(tmp_path / "a.jsonl", rows)
        data = load(DataConfig(path=str(file), validation="none"), None)
        template = Template(family_tokenizer("qwen2_5"))
        return audit(data, template, lengths=[], max_length=1, workers=1, progress=Progress())

    assert found(row("Bonn", [WEATHER]), row("Bonn", [WEATHER])).exact_rows == 1
    other = found(row("Bonn", [WEATHER]), row("Rom", [WEATHER]))
    assert (other.exact_rows, other.conflict_groups) == (0, 1)
    assert found(row("Bonn", [WEATHER]), row("Rom", [{**WEATHER, "description": "Of Rom."}])).conflict_groups == 0


def test_parquet_gives_every_tool_the_keys_of_all_and_they_go_again(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    clock = {"name": "clock", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}
    calls = [{"name": "weather", "arguments": {"city": "Bonn"}}, {"name": "clock", "arguments": {"zone": None}}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Q", "tool_calls": None},
                {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
            ],
            "tools": [WEATHER, clock],
        }
        for call in calls
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    config = DataConfig(path=str(tmp_path / "a.parquet"), validation="none")
    one, other = load(config, None).examples
    assert parse(one.messages[1].tool_calls)[0]["function"] == calls[0]
    assert parse(other.messages[1].tool_calls)[0]["function"] == calls[1], "a null of the tool's own stays"
    assert [tool["function"] for tool in parse(one.tools)] == [WEATHER, clock]
