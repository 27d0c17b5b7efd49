"""Tools and tool calls in chat templates: what a template is given, and whether its text contains all of it.

Each family of templates writes calls its own way, as JSON, as tags or as its own tokens; some silently write no tools
at all. So every call is looked for in the text, name, keys and values, and a template is probed once.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.errors import TemplateError
from luthier.rendering.example import Message, RowError, shared_start
from luthier.rendering.tools import leaves, parse

SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
"""The form of call ids in Mistral's templates."""
Render = Callable[[Sequence[Message], str, bool], str]
"""render(messages, tools, short_ids); it may raise anything."""


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
    calls: tuple[str, str]
    """Calls in a dialogue without tools and in one with them: there, a tokenizer may have another template."""
    short_ids: bool

    def refuse(self, tools: str, *, calls: bool) -> None:
        """TemplateError where the template cannot show a dialogue with these tools, or with calls."""
        fault = f"tools: {self.tools}" if tools and self.tools else ""
        if not fault and calls and self.calls[bool(tools)]:
            fault = f"tool calls: {self.calls[bool(tools)]}"
        if fault:
            raise TemplateError(
                f"the chat template does not support {fault}",
                fix="use a model whose chat template takes tools, or give the tokenizer such a chat_template",
            )


_PARAMETERS = {"type": "object", "properties": {"a": {"type": "string", "description": "A."}}}
_TOOL = {"name": "luthier_probe", "description": "Probe.", "parameters": _PARAMETERS}
_CALL = {"name": "luthier_called", "arguments": {"luthier_key": "luthier_value"}}
PROBE_TOOLS = json.dumps([{"type": "function", "function": _TOOL}])
PROBE_CALL = [
    Message("user", "hi"),
    Message("assistant", "", learn=True, tool_calls=json.dumps([{"type": "function", "function": _CALL}])),
]
PROBE_RESULT = [*PROBE_CALL, Message("tool", "luthier_result", name="luthier_called")]
PROBED = {
    "luthier_called": "the name of a tool call",
    "luthier_key": "the arguments of a tool call",
    "luthier_value": "the arguments of a tool call",
    "luthier_result": "the tool's result",
}


def probe(render: Render) -> ToolSupport:
    """Render a short dialogue with tools, and one with a call."""
    try:
        text = render([Message("user", "hi")], PROBE_TOOLS, False)
        tools = "" if "luthier_probe" in text else "it renders a dialogue with tools as if there were none"
    except Exception as error:
        tools = f"it refuses tools: {error}"
    bare, _ = _probe_call(render, "")
    fault, short_ids = _probe_call(render, PROBE_TOOLS)
    return ToolSupport(tools, (bare, fault), short_ids)


def _probe_call(render: Render, tools: str) -> tuple[str, bool]:
    """What is wrong with a call and its result, and whether ids must be short."""
    fault = ""
    for short_ids in (False, True):
        try:
            text = render(PROBE_RESULT, tools, short_ids)
        except Exception as error:
            fault = fault or f"it refuses a tool call: {error}"
            continue
        missing = next((what for word, what in PROBED.items() if word not in text), "")
        return (f"it leaves out {missing}" if missing else ""), short_ids
    return fault, False


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
        raise TemplateError(
            f"the chat template leaves out {unseen}", fix="give the tokenizer a chat_template that writes it"
        )


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
        raise RowError(
            f"turn {turn + 1}: the chat template leaves out a part of the tool call: {missing[:40]!r} is not in "
            f"{text[:200]!r}",
            fix="give the tokenizer a chat_template that writes it, or leave such rows out with data.on_bad_row=skip",
        )
    return len(text), False
