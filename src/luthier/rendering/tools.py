"""Tools and tool calls of rows, parsed and checked.

They are kept as JSON text in OpenAI's form, in the order of the row, so that an example stays hashable. A tool is
{"type": "function", "function": {"name", "description", "parameters"}}; a call is {"type": "function", "function":
{"name", "arguments"}}, with the "id" that the row gives it. Arguments are an object, as most templates want them.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from luthier.rendering.example import Message, RowError, sound


def read_tools(value: Any, name: str) -> str:
    """The tools of a row, a list or its JSON text; '' where there are none. A bare schema gets OpenAI's wrapping."""
    exact = isinstance(value, str)
    value = None if isinstance(value, str) and not value.strip() else _parsed(value, name)
    if value in (None, "", []):
        return ""
    if not isinstance(value, list):
        raise RowError(f"{name} should be a list of tools, not {type(value).__name__}")
    tools = []
    for number, entry in enumerate(value, 1):
        where = f"tool {number} of {name}"
        tool = _parsed(entry, where) if exact or isinstance(entry, str) else _without_nulls(entry)
        if not isinstance(tool, Mapping):
            raise RowError(f"{where} should be an object, not {type(tool).__name__}")
        if tool.get("type", "function") != "function":
            raise RowError(f"{where} is of type {tool['type']!r}; known is 'function'")
        if not isinstance(tool.get("function"), Mapping):
            tool = {"function": {key: each for key, each in tool.items() if key != "type"}}
        _name(tool["function"], where)
        tools.append({"type": "function", **tool})
    return _text(tools, name)


def read_calls(value: Any, where: str) -> str:
    """The calls of a turn: one, a list of them, or either as JSON text; RowError where a call is incomplete."""
    value = _parsed(value, f"the tool call of {where}")
    calls: list[dict[str, Any]] = []
    for number, entry in enumerate(value if isinstance(value, list) else [value], 1):
        name = f"tool call {number} of {where}"
        call = _parsed(entry, name)
        if not isinstance(call, Mapping):
            raise RowError(f"{name} should be an object, not {type(call).__name__}")
        function = call.get("function", call)
        if not isinstance(function, Mapping):
            raise RowError(f"{name} should have an object for its function, not {type(function).__name__}")
        made = {"name": _name(function, name), "arguments": _arguments(function, name)}
        identity = call.get("id")
        given = {} if identity in (None, "") else {"id": str(identity)}
        if given and not isinstance(identity, str | int):
            raise RowError(f"{name} has an id that is not text: {identity!r:.40}")
        if given and given["id"] in [other.get("id") for other in calls]:
            raise RowError(f"{name} has the id of an earlier one, {identity!r}")
        calls.append({"type": "function", **given, "function": made})
    if not calls:
        raise RowError(f"the list of tool calls of {where} is empty")
    return _text(calls, f"the tool call of {where}")


def read_result(value: Any) -> Any:
    """The result of a tool; an object becomes its JSON text."""
    return _text(value, "the tool result") if isinstance(value, Mapping) else value


def split_results(turns: Sequence[Message]) -> list[Message]:
    """ShareGPT has one observation after a list of calls: a JSON list of as many results becomes a turn for each."""
    made: list[Message] = []
    for number, turn in enumerate(turns):
        calls = len(parse(turns[number - 1].tool_calls)) if number and turn.role == "tool" else 0
        alone = number + 1 == len(turns) or turns[number + 1].role != "tool"
        results = None
        if calls > 1 and alone:
            with contextlib.suppress(ValueError, RecursionError):
                results = json.loads(turn.content)
        if not isinstance(results, list) or len(results) != calls:
            results = [turn.content]
        texts = (each if isinstance(each, str) else _text(each, "the tool result") for each in results)
        made += [replace(turn, content=text) for text in texts]
    return made


def _parsed(value: Any, name: str) -> Any:
    """The value, parsed where it is JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{name} is not JSON ({error}): {value[:40]!r}") from None


def _text(value: Any, name: str) -> str:
    """The value as JSON text; RowError where it cannot be, or holds text that no tokenizer takes."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise RowError(f"{name} cannot be written as JSON: {error}") from None
    for leaf in leaves(value):
        if isinstance(leaf, str):
            sound(leaf, name)
    return text


def _name(function: Mapping[str, Any], where: str) -> str:
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise RowError(f"{where} has no name")
    return name


def _arguments(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    if "arguments" not in function:  # a missing key may have another name: that there are none must be explicit
        raise RowError(f"{where} ({function['name']}) has no arguments, not even {{}}")
    given = function["arguments"]
    given = None if isinstance(given, str) and not given.strip() else _parsed(given, f"arguments of {where}")
    if given in (None, ""):
        return {}
    if not isinstance(given, Mapping):
        raise RowError(f"arguments of {where} should be an object, not {type(given).__name__}")
    return dict(given)


def _without_nulls(value: Any) -> Any:
    """Arrow and parquet give every tool the keys of all others, as null; a schema does not need null keys."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def without_foreign_nulls(turns: Sequence[Message], tools: str) -> list[Message]:
    """The turns without arguments that are null and unknown to a tool on offer: arrow adds those too."""
    offered = {tool["function"]["name"]: tool["function"].get("parameters") for tool in parse(tools)}
    made = []
    for turn in turns:
        calls = json.loads(turn.tool_calls or "[]")
        for call in calls:
            schema = offered.get(call["function"]["name"])
            known = schema.get("properties") if isinstance(schema, Mapping) else None
            if isinstance(known, Mapping):
                given = call["function"]["arguments"].items()
                kept = {key: value for key, value in given if value is not None or key in known}
                call["function"]["arguments"] = kept
        made.append(replace(turn, tool_calls=_text(calls, "a tool call")) if calls else turn)
    return made


@lru_cache(maxsize=4096)
def parse(text: str) -> list[Any]:
    """The list that is kept as text. Do not change it: equal texts share it."""
    return list(json.loads(text)) if text else []


def leaves(value: Any) -> Iterator[Any]:
    """Every key and every value that is neither list nor object."""
    rest = [value]  # no recursion: the row decides how deep it goes
    while rest:
        each = rest.pop()
        if isinstance(each, Mapping):
            yield from each
            rest += each.values()
        elif isinstance(each, list | tuple):
            rest += each
        else:
            yield each


def texts(message: Message) -> Iterator[str]:
    """Every text of a message that a template may render."""
    yield from filter(None, (message.content, message.name, message.tool_call_id))
    if message.tool_calls:
        yield from (leaf for leaf in leaves(parse(message.tool_calls)) if isinstance(leaf, str))


@lru_cache(maxsize=1024)
def tool_texts(tools: str) -> tuple[str, ...]:
    """Every text of the tools on offer."""
    return tuple(leaf for leaf in leaves(parse(tools)) if isinstance(leaf, str))
