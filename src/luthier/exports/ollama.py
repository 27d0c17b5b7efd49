"""A folder for Ollama: the GGUF file and a Modelfile with the run's chat template, its end tokens and settings.

The parts of Ollama's Go template are read off the run's own, which renders dialogues whose messages are markers. Then
both are rendered side by side, Go's as the same template of Jinja; one that differs anywhere is not written.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, TemplateError
from pydantic import Field

from luthier.core.errors import InputError
from luthier.core.shell import shell_line
from luthier.exports.base import Tuned
from luthier.exports.gguf import FILE, Gguf, run_vocabulary
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Message, shared_start
from luthier.rendering.row import Row

Dialogue = Sequence[tuple[str, str]]
"""(role, content) of each message."""
Render = Callable[[Dialogue, bool], str]
"""The run's template; the second argument asks for what opens the next answer."""

MARKERS = ("FIRSTQUESTION", "FIRSTANSWER", "SECONDQUESTION", "SYSTEMTEXT")
SAMPLES: tuple[Dialogue, ...] = (
    (("user", "Hello!"),),
    (("user", "Two lines:\n\n1. 你好"), ("assistant", 'Yes {it} is "so".'), ("user", "真的吗？😀")),
    (("system", "Be brief."), ("user", "Hello!")),
    (("system", "Be brief.\nAnd kind."), *zip(("user", "assistant") * 3, "abcde", strict=False)),
)
"""Dialogues to render with both. No text begins or ends with white space: templates may strip it, Go's cannot."""
ACTIONS = {
    "if .System": "{% if System %}",
    "if not $first": "{% if not own.first %}",
    'if eq .Role "user"': "{% if message.Role == 'user' %}",
    'else if eq .Role "assistant"': "{% elif message.Role == 'assistant' %}",
    "else": "{% else %}",
    "end": "{% endif %}",
    "range .Messages": "{% for message in Messages %}",
    "$first := true": "{% set own.first = true %}",
    "$first = false": "{% set own.first = false %}",
    ".System": "{{ System }}",
    ".Content": "{{ message.Content }}",
}
"""Go's actions, as far as our templates have them -> Jinja's."""


class Ollama(Gguf):
    """The Modelfile's template is verified to render dialogues as the run's own; the file runs in llama.cpp."""

    system: str = ""
    """System message of a dialogue that has none."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """0 takes the most likely token, as the scores of the run do."""

    def refuse(self, tuned: Tuned) -> None:
        super().refuse(tuned)
        if tuned.task != "chat":
            why = f"{tuned.run} was trained on task {tuned.task}, and Ollama holds dialogues"
            raise InputError(why, fix=tuned.export_command("gguf"))
        self._modelfile(tuned)

    def write(self, tuned: Tuned, folder: Path) -> None:
        super().write(tuned, folder)
        (folder / "Modelfile").write_text(self._modelfile(tuned), encoding="utf-8")

    def check(self, tuned: Tuned, opened: Any, rows: Sequence[Row]) -> dict[str, Any]:
        facts = super().check(tuned, opened, rows)
        facts["verified"] += "; the Modelfile's template renders dialogues as the run's own"
        return facts

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        name = re.sub(r"[^a-z0-9._-]+", "-", Path(tuned.run).name.lower()).strip("-") or "tuned"
        return [shell_line("ollama", "create", name, "-f", f"{folder}/Modelfile"), shell_line("ollama", "run", name)]

    def _modelfile(self, tuned: Tuned) -> str:
        """InputError if no Ollama template matches the run's, or the template has no place for a system message."""
        template = Template(tuned.tokenizer)
        opens = tuned.tokenizer.bos_token if run_vocabulary(tuned)["add_bos_token"] else ""

        def render(dialogue: Dialogue, prompt: bool) -> str:
            text = template.render([Message(role, content) for role, content in dialogue], prompt=prompt)
            return text.removeprefix(opens)  # llama.cpp adds it

        made, knows_system = go_template(render)
        if self.system and not knows_system:
            raise InputError("system: this run's chat template has no place for a system message")
        stops = [tuned.tokenizer.convert_ids_to_tokens(number) for number in tuned.ends]
        lines = [f"FROM ./{FILE}", f"TEMPLATE {_quoted(made)}", *(f"PARAMETER stop {_quoted(stop)}" for stop in stops)]
        lines += [f"PARAMETER temperature {self.temperature:g}", "PARAMETER repeat_penalty 1"]
        lines += [f"SYSTEM {_quoted(self.system)}"] if self.system else []
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise InputError(f"a Modelfile cannot hold the text {text[-40:]!r}, because of its quotation marks")
    return f'"""{text}"""'


def go_template(render: Render) -> tuple[str, bool]:
    """(the template, whether it has system messages); InputError if none renders as the run's does."""

    def tried(dialogue: Dialogue) -> str | None:
        try:
            return render(dialogue, True)
        except InputError:  # a template may refuse a role
            return None

    knows_system = tried(SAMPLES[2]) is not None
    wanted = {sample: tried(sample) for sample in SAMPLES if knows_system or sample[0][0] != "system"}
    for made in _candidates(render, knows_system):
        if all(text is not None and text == rendered(made, sample) for sample, text in wanted.items()):
            return made, knows_system
    why = "no Ollama template renders dialogues as this run's chat template does"
    raise InputError(why, fix="--to gguf: llama.cpp reads the run's own template (llama-server --jinja)")


def _candidates(render: Render, knows_system: bool) -> list[str]:
    """Templates made of the parts: with a header for each role, or with what opens the dialogue in one piece."""
    ask, answer, again, rules = MARKERS

    def parts(prompt: bool, *dialogue: tuple[str, str]) -> list[str]:
        """What stands around the messages, each a marker; ValueError if one is missing or stands twice."""
        text = render(dialogue, prompt)
        found = re.split("|".join(MARKERS), text)
        if len(found) != len(dialogue) + 1 or any("{{" in part for part in found):
            raise ValueError(text)
        return found

    user, assistant, system = ("user", ask), ("assistant", answer), ("system", rules)
    try:
        opening, after = parts(True, user)
        closed = parts(False, user)[1]
        _, to_answer, to_question, _ = parts(True, user, assistant, ("user", again))
        end = parts(False, user, assistant)[2]
        before, between = parts(True, system, user)[:2] if knows_system else ("", "")
    except (InputError, ValueError):
        return []
    if not (after.startswith(closed) and to_answer.startswith(closed)):
        closed = after[: shared_start(after, to_answer)]
    prompt, header = after[len(closed) :], to_answer[len(closed) :]
    end = end if to_question.startswith(end) else ""
    question = to_question[len(end) :]

    def start(between: str, opening: str) -> str:
        other = "{{ else }}" + opening if opening else ""
        either = "{{ if .System }}" + before + "{{ .System }}" + between + other + "{{ end }}"
        return either if knows_system else opening

    each = '{{ range .Messages }}{{ if eq .Role "user" }}'
    turns = "{{ .Content }}" + closed + '{{ else if eq .Role "assistant" }}' + header + "{{ .Content }}" + end
    turns += "{{ end }}{{ end }}" + prompt
    later = "{{ if not $first }}" + question + "{{ end }}{{ $first = false }}"
    made = [start(between, opening) + "{{ $first := true }}" + each + later + turns]
    if question and opening.endswith(question) and (between.endswith(question) or not knows_system):
        made.insert(0, start(between.removesuffix(question), opening.removesuffix(question)) + each + question + turns)
    return made


def rendered(template: str, dialogue: Dialogue) -> str:
    """What Ollama makes of a dialogue, by the same template of Jinja. ValueError for any other action.

    .System is all system messages, .Messages all messages; the last `end` is that of `range`.
    """
    pieces = re.split(r"\{\{ (.*?) \}\}", template)  # texts at even places, actions at odd ones
    texts = {f"text_{place}": text for place, text in enumerate(pieces[::2])}
    messages = [{"Role": role, "Content": content} for role, content in dialogue]
    system = "\n\n".join(content for role, content in dialogue if role == "system")
    try:
        pieces[1::2] = [ACTIONS[action] for action in pieces[1::2]]
        pieces[::2] = [f"{{{{ {name} }}}}" for name in texts]
        body, _, prompt = "".join(pieces).rpartition("{% endif %}")
        made = Environment().from_string("{% set own = namespace() %}" + body + "{% endfor %}" + prompt)
        return made.render(texts, System=system, Messages=messages)
    except (KeyError, TemplateError) as error:
        raise ValueError(f"not a template that is known here: {error}") from None
