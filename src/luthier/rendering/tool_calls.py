"""Tools and tool calls before a chat template: what it is given, and whether what it wrote has them all.

Each family of templates writes calls its own way, as JSON, as tags or as its own tokens; some write no tools at all
and say nothing of it. So every call is looked for in the text, name, keys and values, and a template is tried once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.errors import TemplateError
from luthier.rendering.example import Message, RowError
from luthier.rendering.tools import leaves, parse

SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
"""What Mistral's templates take for the id of a call."""


def as_turns(messages: Sequence[Message], *, short_ids: bool = False) -> list[dict[str, Any]]:
    """The messages as a chat template takes them.

    `short_ids`: an id that the row lacks, or has in another form, becomes `call00001` and so on, in the dialogue's
    order; it is learned with its call, so it should be one that the model can say.
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
            found = next(same, None)
            if found:
                waiting.remove(found)
            turn |= {"name": message.name} if message.name else {}
            identity = found[2] if found else message.tool_call_id
            turn |= {"tool_call_id": identity} if identity else {}
        made.append(turn)
    return made


@dataclass(frozen=True, slots=True)
class Knows:
    """What a chat template makes of tools, tried once on a dialogue of our own; '' where all is well."""

    tools: str
    calls: tuple[str, str]
    """Of calls in a dialogue without tools and in one with them: there, a tokenizer may have another template."""
    short_ids: bool

    def refuse(self, tools: str, *, calls: bool) -> None:
        """TemplateError where the template cannot show a dialogue with these tools, or with calls."""
        fault = f"tools: {self.tools}" if tools and self.tools else ""
        if not fault and calls and self.calls[bool(tools)]:
            fault = f"tool calls: {self.calls[bool(tools)]}"
        if fault:
            raise TemplateError(
                f"the chat template knows no {fault}",
                fix="use a model whose chat template takes tools, or give the tokenizer such a chat_template",
            )


TRIED_TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "luthier_probe",
                "description": "Probe.",
                "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "A."}}},
            },
        }
    ]
)
TRIED_CALL = [
    Message("user", "hi"),
    Message(
        "assistant",
        "",
        learn=True,
        tool_calls=json.dumps(
            [
                {
                    "type": "function",
                    "function": {"name": "luthier_called", "arguments": {"luthier_key": "luthier_value"}},
                }
            ]
        ),
    ),
]
TRIED_RESULT = [*TRIED_CALL, Message("tool", "luthier_result", name="luthier_called")]


def knows(render: Callable[[Sequence[Message], str, bool], str]) -> Knows:
    """Ask a template, as render(messages, tools, short_ids). It may raise anything."""
    try:
        text = render([Message("user", "hi")], TRIED_TOOLS, False)
        tools = "" if "luthier_probe" in text else "it renders a dialogue with tools as if there were none"
    except Exception as error:
        tools = f"it refuses tools: {error}"
    bare, _ = _tried(render, "")
    fault, short_ids = _tried(render, TRIED_TOOLS)
    return Knows(tools, (bare, fault), short_ids)


def _tried(render: Callable[[Sequence[Message], str, bool], str], tools: str) -> tuple[str, bool]:
    """What is wrong with a call and its result, and whether ids must be short."""
    fault = ""
    for short_ids in (False, True):
        try:
            text = render(TRIED_RESULT, tools, short_ids)
        except Exception as error:
            fault = fault or f"it refuses a tool call: {error}"
            continue
        lacks = [
            what
            for what, word in (
                ("the name of a tool call", "luthier_called"),
                ("the arguments of a tool call", "luthier_key"),
                ("the arguments of a tool call", "luthier_value"),
                ("the tool's result", "luthier_result"),
            )
            if word not in text
        ]
        return (f"it leaves out {lacks[0]}" if lacks else ""), short_ids
    return fault, False


def holds(text: str, content: str) -> bool:
    """Is the content in the text? A template may change white space."""
    return content in text or "".join(content.split()) in "".join(text.split())


def shows(text: str, value: Any) -> bool:
    """Does the text have the value in one of the ways templates write it: plain, as in JSON, as in Python?"""
    if isinstance(value, str):
        ways = (value.strip(), json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(value)[1:-1], repr(value)[1:-1])
        return any(holds(text, way) for way in dict.fromkeys(ways))
    return json.dumps(value) in text or str(value) in text


def lacking(text: str, message: Message) -> str:
    """What of an answer that calls tools the text does not have, or ''."""
    if not holds(text, content := message.content.strip()):
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


def result_lacking(text: str, results: Sequence[Message]) -> str:
    """A tool's result that the text does not have, or ''."""
    for message in results:
        if shows(text, message.content):
            continue
        try:  # a template may read the JSON and write it its own way
            value = json.loads(message.content)
        except (ValueError, RecursionError):
            return message.content
        if not isinstance(value, dict | list) or not all(shows(text, leaf) for leaf in leaves(value)):
            return message.content
    return ""


def refuse_unseen(
    prompt: str, messages: Sequence[Message], tools: str, render: Callable[[Sequence[Message]], str]
) -> None:
    """TemplateError where a prompt lacks one of the tools, or what they gave back just before."""
    names = (tool["function"]["name"] for tool in parse(tools))
    unseen = next((f"the tool {name!r}" for name in names if not shows(prompt, name)), "")
    last = len(messages)
    while last and messages[last - 1].role == "tool":
        last -= 1
    if not unseen and last < len(messages):
        known = render(messages[:last])  # only what stands behind the call counts: "3" is soon somewhere
        same = next((i for i, (a, b) in enumerate(zip(known, prompt, strict=False)) if a != b), len(known))
        result = result_lacking(prompt[same:], messages[last:])
        unseen = f"a tool's result: {result[:40]!r}" if result else ""
    if unseen:
        raise TemplateError(
            f"the chat template leaves out {unseen}", fix="give the tokenizer a chat_template that writes it"
        )


def called(turn: int, message: Message, text: str, special: re.Pattern[str], ends: set[str]) -> tuple[int, bool]:
    """How much of a turn that calls tools the model says, and whether a special token ends it.

    Special tokens may stand before, within and behind the calls. The turn ends with the first one behind the last
    call that also ends plain answers, else with the first one.
    """
    stop = 0
    for token in special.finditer(text):
        if not stop and not lacking(text[: token.start()], message):
            stop = token.end()
        if stop and token[0] in ends:
            return token.end(), True
    if stop:
        return stop, True
    if lack := lacking(text, message):
        raise RowError(
            f"turn {turn + 1}: the chat template leaves out a part of the tool call: {lack[:40]!r} does not stand in "
            f"{text[:200]!r}",
            fix="give the tokenizer a chat_template that writes it, or leave such rows out with data.on_bad_row=skip",
        )
    return len(text), False
