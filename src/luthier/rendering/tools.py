"""Tools and tool calls: parsed and checked as they are read from rows, and looked for in what a chat template renders.

Each family of templates writes calls its own way, as JSON, as tags or as its own tokens; some silently write no tools
at all. So every call is looked for in the text, name, keys and values, and a template is probed once.

Tools and calls are kept as JSON text in OpenAI's form, in the order of the row, so that an example stays hashable. A
tool is {"type": "function", "function": {"name", "description", "parameters"}}; a call is {"type": "function",
"function": {"name", "arguments"}}, with the "id" that the row gives it. Arguments are an object, as most templates want
them.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from luthier.core.errors import TemplateError
from luthier.rendering.example import Message, RowError, shared_start, sound

SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
"""The form of call ids in Mistral's templates."""
Render = Callable[[Sequence[Message], str, bool], str]
"""render(messages, tools, short_ids); it may raise anything."""


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
        called = _name(function, name)
        if "arguments" not in function:  # a missing key may have another name: that there are none must be explicit
            raise RowError(f"{name} ({called}) has no arguments, not even {{}}")
        given = function["arguments"]
        given = None if isinstance(given, str) and not given.strip() else _parsed(given, f"arguments of {name}")
        if given not in (None, "") and not isinstance(given, Mapping):
            raise RowError(f"arguments of {name} should be an object, not {type(given).__name__}")
        made = {"name": called, "arguments": dict(given or {})}
        identity = call.get("id")
        own = {} if identity in (None, "") else {"id": str(identity)}
        if own and not isinstance(identity, str | int):
            raise RowError(f"{name} has an id that is not text: {identity!r:.40}")
        if own and own["id"] in [other.get("id") for other in calls]:
            raise RowError(f"{name} has the id of an earlier one, {identity!r}")
        calls.append({"type": "function", **own, "function": made})
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
    for leaf in strings(value):
        sound(leaf, name)
    return text


def _name(function: Mapping[str, Any], where: str) -> str:
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise RowError(f"{where} has no name")
    return name


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


def strings(value: Any) -> list[str]:
    """Every text in a value of JSON, keys included."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, str)]


def texts(message: Message) -> Iterator[str]:
    """Every text of a message that a template may render."""
    yield from filter(None, (message.content, message.name, message.tool_call_id))
    yield from strings(parse(message.tool_calls))


def as_turns(messages: Sequence[Message], *, short_ids: bool = False) -> list[dict[str, Any]]:
    """The messages as a chat template takes them.

    `short_ids`: an id that the row lacks, or has in another form, becomes `call00001` and so on, in the dialogue's
    order; it is learned with its call, so it should be one that the model can generate.
    """
    made: list[dict[str, Any]] = []
    waiting: list[tuple[str, str, str]] = []  # id in the row, name, id in the turn
    count = 0
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = calls = []
            waiting = []
            for call in parse(message.tool_calls):
                count += 1
                own = call.get("id", "")
                new = f"call{count:05d}" if short_ids and not SHORT_ID.fullmatch(own) else own
                calls.append({**call, "id": new} if new else call)
                waiting.append((own, call["function"]["name"], new))
        if message.role == "tool":
            same = (w for w in waiting if w[0] == message.tool_call_id and message.name in ("", w[1]))
            identity = message.tool_call_id
            if found := next(same, None):
                waiting.remove(found)
                identity = found[2]
            turn |= {"name": message.name} if message.name else {}
            turn |= {"tool_call_id": identity} if identity else {}
        made.append(turn)
    return made


@dataclass(frozen=True, slots=True)
class ToolSupport:
    """What is wrong with tools in a chat template, from a probe; '' where nothing is."""

    tools: str
    calls: dict[bool, str]
    """Calls in a dialogue without tools and in one with them: there, a tokenizer may have another template."""
    short_ids: bool

    def refuse(self, tools: str, *, calls: bool) -> None:
        """TemplateError where the template cannot show a dialogue with these tools, or with calls."""
        for what, fault in (("tools", tools and self.tools), ("tool calls", calls and self.calls[bool(tools)])):
            if fault:
                fix = "use a model whose chat template takes tools, or give the tokenizer such a chat_template"
                raise TemplateError(f"the chat template does not support {what}: {fault}", fix=fix)


_PARAMETERS = {"type": "object", "properties": {"a": {"type": "string", "description": "A."}}}
_TOOL = {"name": "luthier_probe", "description": "Probe.", "parameters": _PARAMETERS}
_CALLED = {"name": "luthier_called", "arguments": {"luthier_key": "luthier_value"}}
_CALL = Message("assistant", "", learn=True, tool_calls=json.dumps([{"type": "function", "function": _CALLED}]))
PROBE_TOOLS = json.dumps([{"type": "function", "function": _TOOL}])
PROBE_CALL = [Message("user", "hi"), _CALL]
PROBE_RESULT = [*PROBE_CALL, Message("tool", "luthier_result", name="luthier_called")]
PROBED = {"luthier_called": "the name of a tool call"}
PROBED |= dict.fromkeys(("luthier_key", "luthier_value"), "the arguments of a tool call")
PROBED["luthier_result"] = "the tool's result"


def probe(render: Render) -> ToolSupport:
    """Render a short dialogue with tools, one with a call, and one with both; some templates need short call ids."""
    try:
        text = render([Message("user", "hi")], PROBE_TOOLS, False)
        tools = "" if "luthier_probe" in text else "it renders a dialogue with tools as if there were none"
    except Exception as error:
        tools = f"it refuses tools: {error}"
    calls = {}
    for offered in ("", PROBE_TOOLS):
        short_ids, fault = False, ""
        for short in (False, True):
            try:
                text = render(PROBE_RESULT, offered, short)
            except Exception as error:
                fault = fault or f"it refuses a tool call: {error}"
                continue
            missing = next((what for word, what in PROBED.items() if word not in text), "")
            short_ids, fault = short, f"it leaves out {missing}" if missing else ""
            break
        calls[bool(offered)] = fault
    return ToolSupport(tools, calls, short_ids)


def contains(text: str, content: str) -> bool:
    """Is the content in the text? A template may change white space."""
    return content in text or "".join(content.split()) in "".join(text.split())


def shows(text: str, value: Any) -> bool:
    """Is the value in the text in one of the ways templates write it: plain, as in JSON, as in Python?"""
    if isinstance(value, str):
        ways = (value.strip(), json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(value)[1:-1], repr(value)[1:-1])
        return any(contains(text, way) for way in dict.fromkeys(ways))
    return json.dumps(value) in text or str(value) in text


def missing_call(text: str, message: Message) -> str:
    """The part of an answer with tool calls that is not in the text, or ''."""
    if not contains(text, content := message.content.strip()):
        return content
    calls = parse(message.tool_calls)
    place = 0
    for call in calls:  # in order, so that of two calls of one tool both are there
        name = str(call["function"]["name"])
        places = [(at, len(way)) for way in (name, json.dumps(name)[1:-1]) if (at := text.find(way, place)) >= 0]
        if not places:
            return name
        place = sum(min(places))
    each = (leaf for call in calls for leaf in leaves(call["function"]["arguments"]))
    return next((str(leaf) for leaf in each if not shows(text, leaf)), "")


def _result_shown(text: str, content: str) -> bool:
    if shows(text, content):
        return True
    try:  # a template may read the JSON and write it its own way
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list) and all(shows(text, leaf) for leaf in leaves(value))


def refuse_unseen(
    prompt: str, messages: Sequence[Message], tools: str, render: Callable[[Sequence[Message]], str]
) -> None:
    """TemplateError where a prompt lacks one of the tools, or the results just before."""
    names = (tool["function"]["name"] for tool in parse(tools))
    unseen = next((f"the tool {name!r}" for name in names if not shows(prompt, name)), "")
    last = len(messages)
    while last and messages[last - 1].role == "tool":
        last -= 1
    if not unseen and last < len(messages):
        # Only what follows the call counts: a result such as "3" is likely to be in the text before it.
        text = prompt[shared_start(render(messages[:last]), prompt) :]
        hidden = (message.content for message in messages[last:] if not _result_shown(text, message.content))
        unseen = next((f"a tool's result: {result[:40]!r}" for result in hidden), "")
    if unseen:
        fix = "give the tokenizer a chat_template that writes it"
        raise TemplateError(f"the chat template leaves out {unseen}", fix=fix)


def answer_size(turn: int, message: Message, text: str, special: re.Pattern[str], ends: set[str]) -> tuple[int, bool]:
    """Characters of a turn with tool calls that the model generates, and whether a special token ends them.

    Special tokens may be before, inside and after the calls. The turn ends with the first one after the last
    call that also ends plain answers, else with the first one.
    """
    stop = 0
    for token in special.finditer(text):
        if not stop and not missing_call(text[: token.start()], message):
            stop = token.end()
        if stop and token[0] in ends:
            return token.end(), True
    if stop:
        return stop, True
    if missing := missing_call(text, message):
        why = f"the chat template leaves out a part of the tool call: {missing[:40]!r} is not in {text[:200]!r}"
        fix = "give the tokenizer a chat_template that writes it, or leave such rows out with data.on_bad_row=skip"
        raise RowError(f"turn {turn + 1}: {why}", fix=fix)
    return len(text), False
