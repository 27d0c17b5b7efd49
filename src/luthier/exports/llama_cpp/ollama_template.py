"""The run's chat template as Ollama needs it: a template of Go, which renders every dialogue as the run's own does.

The parts (what stands before and behind a message of each role) are read off the run's template by rendering dialogues
whose messages are markers. Then both are rendered side by side; one that differs anywhere is not written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from luthier.core.errors import InputError

Dialogue = Sequence[tuple[str, str]]
"""(role, content) of each message."""
Render = Callable[[Dialogue, bool], str]
"""The run's template; the second argument asks for what opens the next answer."""

ASKED, SAID, AGAIN, RULES = "FIRSTQUESTION", "FIRSTANSWER", "SECONDQUESTION", "SYSTEMTEXT"
SAMPLES: tuple[Dialogue, ...] = (
    (("user", "Hello!"),),
    (("user", "Two lines:\n\n1. 你好"), ("assistant", 'Yes {it} is "so".'), ("user", "真的吗？😀")),
    (("system", "Be brief."), ("user", "Hello!")),
    (
        ("system", "Be brief.\nAnd kind."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
        ("user", "e"),
    ),
)
"""On which both have to be the same. Texts have no white space around them: templates may strip it, Go's cannot."""


def go_template(render: Render) -> tuple[str, bool]:
    """(the template, does it know system messages?); InputError where none renders as the run's does."""
    knows_system = _try(render, SAMPLES[2]) is not None
    wanted = {sample: _try(render, sample) for sample in SAMPLES if knows_system or sample[0][0] != "system"}
    for made in _candidates(render, knows_system):
        if all(text is not None and text == rendered(made, sample) for sample, text in wanted.items()):
            return made, knows_system
    raise InputError(
        "no template of Ollama's renders dialogues as this run's chat template does",
        fix="--to gguf: llama.cpp reads the run's own template (llama-server --jinja)",
    )


def _try(render: Render, dialogue: Dialogue) -> str | None:
    try:
        return render(dialogue, True)
    except InputError:  # a template may refuse a role
        return None


def _parts(text: str, *markers: str) -> list[str]:
    """What stands around the markers; ValueError where one is missing or stands twice."""
    found = re.split("|".join(markers), text)
    if len(found) != len(markers) + 1:
        raise ValueError(text)
    return found


def _candidates(render: Render, knows_system: bool) -> list[str]:
    """Templates made of the parts: with a header for each role, or with what opens the dialogue in one piece."""
    try:
        opening, behind = _parts(render([("user", ASKED)], True), ASKED)
        closed = _parts(render([("user", ASKED)], False), ASKED)[1]
        dialogue = [("user", ASKED), ("assistant", SAID), ("user", AGAIN)]
        _, to_answer, to_question, _ = _parts(render(dialogue, True), ASKED, SAID, AGAIN)
        end = _parts(render(dialogue[:2], False), ASKED, SAID)[2]
        rules = (
            _parts(render([("system", RULES), ("user", ASKED)], True), RULES, ASKED)[:2] if knows_system else ["", ""]
        )
    except (InputError, ValueError):
        return []
    if not (behind.startswith(closed) and to_answer.startswith(closed)):
        closed = _both_start_with(behind, to_answer)
    prompt, header = behind[len(closed) :], to_answer[len(closed) :]
    end = end if to_question.startswith(end) else ""
    question = to_question[len(end) :]
    if any("{{" in part for part in (opening, behind, to_answer, to_question, *rules)):
        return []
    turns = closed + '{{ else if eq .Role "assistant" }}' + header + "{{ .Content }}" + end + "{{ end }}{{ end }}"
    each, asked = '{{ range .Messages }}{{ if eq .Role "user" }}', "{{ .Content }}"
    made = []
    if question and opening.endswith(question) and (rules[1].endswith(question) or not knows_system):
        cut = len(question)
        start = _start(knows_system, rules[0], rules[1][:-cut], opening[:-cut])
        made.append(start + each + question + asked + turns + prompt)
    start = _start(knows_system, rules[0], rules[1], opening) + "{{ $first := true }}"
    later = "{{ if not $first }}" + question + "{{ end }}{{ $first = false }}"
    return [*made, start + each + later + asked + turns + prompt]


def _both_start_with(one: str, other: str) -> str:
    same = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return one[:same] if same is not None else min(one, other, key=len)


def _start(knows_system: bool, before: str, after: str, otherwise: str) -> str:
    if not knows_system:
        return otherwise
    return (
        "{{ if .System }}"
        + before
        + "{{ .System }}"
        + after
        + ("{{ else }}" + otherwise) * bool(otherwise)
        + "{{ end }}"
    )


def rendered(template: str, dialogue: Dialogue) -> str:
    """What Ollama makes of a dialogue: Go's text/template, as far as our templates go.

    .System are all system messages, .Messages all messages. ValueError for an action that is none of ours.
    """
    pieces = re.split(r"\{\{ (.*?) \}\}", template)  # texts at even places, actions at odd ones
    nodes, place = _block(pieces, 0)
    if place < len(pieces):
        raise ValueError(f"nothing opens {pieces[place]!r}")
    system = "\n\n".join(content for role, content in dialogue if role == "system")
    root = {"System": system, "Messages": [{"Role": role, "Content": content} for role, content in dialogue]}
    return "".join(_play(nodes, root, root, {}))


def _block(pieces: Sequence[str], place: int) -> tuple[list[Any], int]:
    """Nodes from `place` up to an else or end, and where that is. A node: text, [action] or (action, then, else)."""
    nodes: list[Any] = []
    while place < len(pieces):
        text = pieces[place]
        if place % 2 == 0:
            nodes.append(text)
        elif text == "end" or text.startswith("else"):
            break
        elif text.startswith(("if ", "range ")):
            node, place = _branch(pieces, place, text)
            nodes.append(node)
        else:
            nodes.append([text])
        place += 1
    return nodes, place


def _branch(pieces: Sequence[str], place: int, action: str) -> tuple[Any, int]:
    """An if or range that begins at `place`, and where its end is."""
    then, place = _block(pieces, place + 1)
    otherwise: list[Any] = []
    if pieces[place].startswith("else if "):
        nested, place = _branch(pieces, place, pieces[place].removeprefix("else "))
        otherwise = [nested]
    elif pieces[place] == "else":
        otherwise, place = _block(pieces, place + 1)
    if pieces[place] != "end":
        raise ValueError(f"{action!r} has no end")
    return (action, then, otherwise), place


def _play(nodes: Sequence[Any], dot: Any, root: Any, variables: dict[str, bool]) -> Iterator[str]:
    """The texts of some nodes."""
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, list):
            if found := re.fullmatch(r"(\$\w+) :?= (true|false)", node[0]):
                variables[found[1]] = found[2] == "true"
            else:
                yield _value(node[0], dot, variables)
        elif node[0] == "range .Messages":
            for message in root["Messages"]:
                yield from _play(node[1], message, root, variables)
        else:
            holds = _holds(node[0].removeprefix("if "), dot, variables)
            yield from _play(node[1] if holds else node[2], dot, root, variables)


def _holds(condition: str, dot: Any, variables: dict[str, bool]) -> bool:
    if found := re.fullmatch(r'eq (\.\w+) "(\w+)"', condition):
        return bool(_value(found[1], dot, variables) == found[2])
    if condition.startswith("not "):
        return not _value(condition.removeprefix("not "), dot, variables)
    return bool(_value(condition, dot, variables))


def _value(name: str, dot: Any, variables: dict[str, bool]) -> Any:
    if name.startswith(".") and name[1:] in dot:
        return dot[name[1:]]
    if name in variables:
        return variables[name]
    raise ValueError(f"unknown: {name!r}")
