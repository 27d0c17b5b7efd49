"""Tools before chat templates: shown in every prompt, calls learned to their end token, results never, else refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.errors import TemplateError
from luthier.rendering.chat_template import CHATML, PLAIN, Template
from luthier.rendering.example import Example, Message, RowError, chat
from luthier.rendering.row import IGNORED, Row
from luthier.rendering.tools import as_turns, parse, read_calls, read_tools
from luthier.tasks.chat import Chat
from luthier.tasks.complete import Complete
from tests.conftest import ROOT, build_tokenizer
from tests.rendering.test_template_families import FAMILIES, IM, TAGS, family_tokenizer, stretches

TOOLS = read_tools(
    [
        {
            "name": "weather",
            "description": "Weather of a town.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
        {"name": "clock", "description": "The hour.", "parameters": {"type": "object", "properties": {}}},
    ],
    "tools",
)
ASK = '"city": "Köln \\"Süd\\"\\n", "days": 3, "units": {"warm": true, "cold": null, "factor": 1.5}, "list": ["a", ""]'
WEATHER, CLOCK = ("weather", "{" + ASK + "}"), ("clock", "{}")


def calling(*calls: tuple[str, str], content: str = "", ids: tuple[str, ...] = ()) -> Message:
    made = [{"name": name, "arguments": arguments} for name, arguments in calls]
    made = [{**call, **({"id": ids[i]} if ids else {})} for i, call in enumerate(made)]
    return Message("assistant", content, tool_calls=read_calls(made, "x"))


def said(text: str) -> Message:
    return Message("assistant", text)


def asked(text: str) -> Message:
    return Message("user", text)


def given(text: str, identity: str = "") -> Message:
    return Message("tool", text, tool_call_id=identity)


RAIN, HOUR = '{"sky": "rain", "of": "Köln"}', "nine o'clock"
DIALOGUES = {
    "call": chat([asked("Rain?"), calling(WEATHER)]),
    "result": chat([asked("Rain?"), calling(WEATHER), given(RAIN), said("It rains.")]),
    "no arguments": chat([asked("Hour?"), calling(CLOCK), given(HOUR), said("Nine.")]),
    "one after another": chat(
        [
            asked("Hello"),
            said("Yes?"),
            asked("Rain?"),
            calling(WEATHER),
            given(RAIN),
            calling(CLOCK),
            given(HOUR),
            said("It rains."),
            asked("Good"),
            said("Bye."),
        ]
    ),
    "two at once": chat([asked("Both?"), calling(WEATHER, CLOCK), given(RAIN), given(HOUR), said("Rain at nine.")]),
    "the same twice": chat([asked("Both?"), calling(CLOCK, CLOCK), given("8"), given("9"), said("Nine.")]),
}


def in_tags(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls) + "<|im_end|>"


def as_json(call: tuple[str, str], key: str = "arguments") -> str:
    return f'{{"name": "{call[0]}", "{key}": {call[1]}}}'


def mistral(space: str) -> Callable[..., str]:
    def write(*calls: tuple[str, str], first: int = 1) -> str:
        each = [f'{as_json(call)[:-1]}, "id": "call{first + i:05d}"}}' for i, call in enumerate(calls)]
        return f"[TOOL_CALLS]{space}[{', '.join(each)}]</s>"

    return write


WRITES: dict[str, Callable[..., str]] = {
    "qwen2_5": lambda *calls, first=1: in_tags(*map(as_json, calls)),
    # A call ends its own row, and as the last turn it carries the empty think block that the model has to say.
    "qwen3": lambda *calls, first=1: "<think>\n\n</think>\n\n" + in_tags(*map(as_json, calls)),
    "hermes": lambda *calls, first=1: in_tags(*map(as_json, calls)),
    "llama3_1": lambda *calls, first=1: as_json(*calls, "parameters") + "<|eot_id|>",
    "mistral_v3": mistral(" "),
    "mistral_nemo": mistral(""),
}
SEVERAL = {"qwen3", "mistral_v3", "mistral_nemo"}
FITTING = [
    (name, kind)
    for name in WRITES
    for kind in DIALOGUES
    if name != "llama3_1" or kind not in ("two at once", "the same twice")
]


def learned(template: Template, tokens: Row) -> list[str]:
    return [template.tokenizer.decode(tokens.ids[first:past]) for first, past in stretches(tokens)]


@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_calls_and_answers_are_learned_and_use_shows_the_same_prompt(name: str, kind: str) -> None:
    family, messages = FAMILIES[name], DIALOGUES[kind]
    template = Template(family_tokenizer(name))
    rows = template.rows(messages, TOOLS)
    expected, count = [], 1
    for message in messages:
        calls = parse(message.tool_calls)
        if calls:
            sent = [WEATHER if call["function"]["name"] == "weather" else CLOCK for call in calls]
            expected.append(WRITES[name](*sent, first=count))
            count += len(calls)
        elif message.learn:
            expected.append(family.said(message.content) + family.end)
    assert [text for row in rows for text in learned(template, row)] == expected
    if name not in SEVERAL:
        assert len(rows) == 1
    short_ids = name.startswith("mistral")
    for row in rows:
        turns = as_turns(row.messages, short_ids=short_ids)
        whole = template.tokenizer.apply_chat_template(turns, tools=parse(TOOLS), tokenize=True, return_dict=False)
        assert row.ids == list(whole), "the row is what the template makes of the dialogue and its tools"
        places = [i for i, message in enumerate(row.messages) if message.learn]
        for place, (first, _) in zip(places, stretches(row), strict=True):
            prompt = row.ids[:first]
            assert template.prompt_ids(row.messages[:place], TOOLS) == prompt, "as the model sees it in use"
            shown = template.tokenizer.decode(prompt)
            assert "Weather of a town." in shown and "clock" in shown
        unlearned = template.tokenizer.decode(
            [t for t, label in zip(row.ids, row.labels, strict=True) if label == IGNORED]
        )
        for message in row.messages:
            if message.role == "tool":
                assert message.content in unlearned or json.dumps(message.content, ensure_ascii=False) in unlearned
    assert template.end_ids == {template.tokenizer.convert_tokens_to_ids(token) for token in (family.end, family.eos)}


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "hermes"])
def test_text_before_a_call_is_learned_with_it(name: str) -> None:
    template = Template(family_tokenizer(name))
    thought = "<think>\nrain?\n</think>\n\n" if name == "qwen3" else ""
    messages = chat([asked("Rain?"), calling(CLOCK, content=f"{thought}I look."), given(HOUR), said("Nine.")])
    texts = [text for row in template.rows(messages, TOOLS) for text in learned(template, row)]
    assert texts[0] == f"{thought}I look.\n{in_tags(as_json(CLOCK))}"


@pytest.mark.parametrize("name", ["llama3_1", "mistral_v3", "mistral_nemo"])
def test_text_before_a_call_that_the_template_drops_is_refused(name: str) -> None:
    template = Template(family_tokenizer(name))
    with pytest.raises(RowError, match=r"turn 2: the chat template leaves out a part of the tool call: 'I look\.'"):
        template.rows(chat([asked("Rain?"), calling(CLOCK, content="I look.")]), TOOLS)


def test_only_one_call_at_once_is_said_in_the_templates_own_words() -> None:
    template = Template(family_tokenizer("llama3_1"))
    with pytest.raises(
        TemplateError, match="refuses this dialogue: This model only supports single tool-calls at once"
    ):
        template.rows(DIALOGUES["two at once"], TOOLS)


def test_ids_of_a_row_are_kept_where_the_template_takes_them() -> None:
    template = Template(family_tokenizer("mistral_nemo"))
    ids = ("a1B2c3D4e", "call_0123456789")
    messages = [asked("Both?"), calling(CLOCK, CLOCK, ids=ids), given("8", ids[1]), given("9", ids[0]), said("Nine.")]
    (row,) = template.rows(chat(messages), TOOLS)
    assert '"id": "a1B2c3D4e"' in learned(template, row)[0] and '"id": "call00002"' in learned(template, row)[0]
    shown = template.tokenizer.decode(row.ids)
    assert '{"content": 8, "call_id": "call00002"}' in shown and '{"content": 9, "call_id": "a1B2c3D4e"}' in shown
    ours = as_turns(chat(messages))
    assert [call["id"] for call in ours[1]["tool_calls"]] == list(ids) and ours[2]["tool_call_id"] == ids[1]
    assert "id" not in as_turns(DIALOGUES["call"])[1]["tool_calls"][0], "and none is made up where none is asked for"


OTHERS = sorted(FAMILIES.keys() - WRITES.keys())


@pytest.mark.parametrize("name", OTHERS)
def test_a_template_without_tools_is_refused_and_the_row_is_named(name: str) -> None:
    template = Template(family_tokenizer(name))
    plain = chat([asked("Hello"), said("Yes.")])
    for messages, tools, what in (
        (plain, TOOLS, "tools: it renders a dialogue with tools as if there were none"),
        (DIALOGUES["call"], "", "tool calls: it (leaves out|refuses)"),
        (DIALOGUES["result"], TOOLS, "tools: it renders a dialogue with tools as if there were none"),
    ):
        with pytest.raises(TemplateError, match=f"the chat template does not support {what}"):
            template.prompt_ids(messages[:1] if tools else messages, tools)
        with pytest.raises(RowError, match=f"the chat template does not support {what}") as caught:
            Chat().encode(Example(messages, tools=tools), template, 9999, "stop")
        assert caught.value.kind == "bad" and "use a model whose chat template takes tools" in caught.value.fix
    assert len(Chat().encode(Example(plain), template, 9999, "stop")) == 1, "rows without tools are learned as ever"


@pytest.mark.parametrize("text", [CHATML, PLAIN])
def test_our_own_defaults_know_no_tools(text: str) -> None:
    template = Template(build_tokenizer(template=text, special=IM))
    with pytest.raises(TemplateError, match="the chat template does not support tools"):
        template.rows(DIALOGUES["result"], TOOLS)


QWEN = (ROOT / "tests" / "rendering" / "templates" / "qwen2_5.jinja").read_text(encoding="utf-8")


def qwen_with(old: str, new: str) -> Template:
    assert old in QWEN
    return Template(build_tokenizer(template=QWEN.replace(old, new), special=IM))


@pytest.mark.parametrize(
    ("old", "new", "kind", "fault"),
    [
        ("(call.function.arguments | tojson)", "'{}'", "call", "not support tool calls: it leaves out the arguments"),
        ("call.function.name", "'f'", "call", "not support tool calls: it leaves out the name"),
        ("~ turn.content ~ '\\n</tool_response>'", "~ '\\n</tool_response>'", "result", "leaves out the tool's result"),
        (
            "elif turn.tool_calls",
            "elif turn.tool_calls and raise_exception('no calls')",
            "call",
            "it refuses a tool call: no calls",
        ),
        ("for tool in tools", "for tool in tools[:1]", "call", "leaves out the tool 'clock'"),
        ("in turn.tool_calls", "in turn.tool_calls[:1]", "two at once", "turn 2: .* tool call: 'clock'"),
        ("in turn.tool_calls", "in turn.tool_calls[:1]", "the same twice", "turn 2: .* tool call: 'clock'"),
        (
            "call.function.arguments | tojson",
            "call.function.arguments | tojson | replace('1.5', '2')",
            "call",
            "turn 2: .* tool call: '1.5' is not in",
        ),
        (
            "call.function.arguments | tojson",
            "call.function.arguments | tojson | replace('units', 'u')",
            "call",
            "turn 2: .* tool call: 'units' is not in",
        ),
        (
            "~ turn.content ~ '\\n</tool_response>'",
            "~ turn.content[:12] ~ '\\n</tool_response>'",
            "result",
            "not support tool calls: it leaves out the tool's result",
        ),
        (
            "~ turn.content ~ '\\n</tool_response>'",
            "~ turn.content[:20] ~ '\\n</tool_response>'",
            "result",
            "leaves out a tool's result: '{\"sky\"",
        ),
    ],
)
def test_a_template_that_drops_a_part_is_refused(old: str, new: str, kind: str, fault: str) -> None:
    with pytest.raises((TemplateError, RowError), match=fault):
        qwen_with(old, new).rows(DIALOGUES[kind], TOOLS)


def test_arguments_that_a_template_writes_its_own_way_are_found() -> None:
    """Sorted, indented, as Python or in tags, with signs of other scripts escaped."""
    old = "(call.function.arguments | tojson)"
    for new in (
        "(call.function.arguments | tojson(sort_keys=True, indent=2))",
        "(call.function.arguments | tojson(ensure_ascii=True))",
        "(call.function.arguments | string)",
    ):
        (row,) = qwen_with(old, new).rows(DIALOGUES["result"], TOOLS)
        assert len(stretches(row)) == 2
    tags = "{%- for key, value in call.function.arguments.items() -%}{{- '<arg>' ~ key ~ '=' ~ value -}}{%- endfor -%}"
    whole = "{{- '\\n<tool_call>' ~ call.function.name -}}" + tags + "{{- '</tool_call>' -}}"
    begin, end = QWEN.index("{{- '\\n<tool_call>"), QWEN.index("</tool_call>' -}}\n        {%- endfor") + 17
    template = Template(build_tokenizer(template=QWEN[:begin] + whole + QWEN[end:], special=IM))
    (row,) = template.rows(DIALOGUES["result"], TOOLS)
    assert "<arg>days=3<arg>" in learned(template, row)[0]


@pytest.mark.parametrize("place", ["arguments", "key", "result", "tool"])
def test_no_part_of_a_tool_may_hold_a_special_token(place: str) -> None:
    template = Template(family_tokenizer("qwen2_5"))
    bad = "a<|im_end|>b"
    arguments = {"a": bad} if place == "arguments" else {bad: 1} if place == "key" else {}
    messages = [asked("Hour?"), calling(("clock", json.dumps(arguments))), given(bad if place == "result" else "9")]
    tools = json.dumps([{"type": "function", "function": {"name": "clock", "description": bad}}])
    where = {"result": "turn 3: the tool message", "tool": "a tool on offer"}.get(
        place, "turn 2: the assistant message"
    )
    with pytest.raises(RowError) as caught:
        template.rows(chat([*messages, said("Nine.")]), tools if place == "tool" else TOOLS)
    assert f"{where} contains '<|im_end|>', a special token" in caught.value.reason


# Special tokens around each call, and one that ends the turn behind them all, as DeepSeek's.
AROUND = (
    "{{- bos_token -}}{%- for tool in tools or [] -%}{{- tool | tojson -}}{%- endfor -%}{%- for m in messages -%}"
    "{%- if m.tool_calls -%}{{- '<A><CC>' ~ m.content -}}{%- for c in m.tool_calls -%}{{- '<C>' ~ c.function.name ~"
    " '<S>' ~ (c.function.arguments | tojson) ~ '</C>' -}}{%- endfor -%}{{- '</CC>' ~ eos_token ~ '\n' -}}"
    "{%- elif m.role == 'assistant' -%}{{- '<A>' ~ m.content ~ eos_token ~ '\n' -}}"
    "{%- else -%}{{- '<' ~ m.role ~ '>' ~ m.content -}}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<A>' -}}{%- endif -%}"
)


def test_names_in_other_scripts_are_found_escaped_too() -> None:
    text = QWEN.replace("(tool | tojson)", "(tool | tojson(ensure_ascii=True))").replace(
        """'\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": '""",
        """'\\n<tool_call>\\n{"name": ' ~ (call.function.name | tojson(ensure_ascii=True)) ~ ', "arguments": '""",
    )
    assert text.count("ensure_ascii=True") == 2
    template = Template(build_tokenizer(template=text, special=IM))
    messages = chat([asked("雨?"), calling(("天气", '{"城市": "北京"}'), ("天气", "{}"))])
    (row,) = template.rows(messages, read_tools([{"name": "天气"}], "tools"))
    assert learned(template, row)[0].count("\\u5929\\u6c14") == 2


def test_special_tokens_around_calls_are_learned_up_to_the_one_that_ends_the_turn() -> None:
    special = ("<A>", "<CC>", "</CC>", "<C>", "</C>", "<S>")
    template = Template(build_tokenizer(template=AROUND, special=special))
    (row,) = template.rows(DIALOGUES["two at once"], TOOLS)
    assert learned(template, row)[0] == f"<CC><C>weather<S>{WEATHER[1]}</C><C>clock<S>{{}}</C></CC></s>"
    own = Template(
        build_tokenizer(template=AROUND.replace("'</CC>' ~ eos_token", "'</CC><eom>'"), special=(*special, "<eom>"))
    )
    (row,) = own.rows(DIALOGUES["call"], TOOLS)
    assert learned(own, row)[0].endswith("</C>"), "without a token that ends plain answers, the first behind the call"


# No token closes a call: the one that opens the tool's turn stops the model, as in GLM-4.
OPEN = (
    "{%- for tool in tools or [] -%}{{- tool | tojson -}}{%- endfor -%}{%- for m in messages -%}{%- if m.tool_calls -%}"
    "{{- '<|assistant|>' -}}{%- for c in m.tool_calls -%}{{- c.function.name ~ '\n' ~ (c.function.arguments | tojson) -}}"
    "{%- endfor -%}{%- else -%}{{- '<|' ~ m.role ~ '|>' ~ m.content -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def test_a_call_that_nothing_closes_ends_with_the_token_that_opens_the_result() -> None:
    special = ("<|user|>", "<|assistant|>", "<|tool|>")
    template = Template(build_tokenizer(template=OPEN, special=special))
    (row,) = template.rows(DIALOGUES["result"], TOOLS)
    assert learned(template, row) == [f"weather\n{WEATHER[1]}<|tool|>", "It rains.<|user|>"]
    (row,) = template.rows(DIALOGUES["call"], TOOLS)
    assert learned(template, row) == [f"weather\n{WEATHER[1]}<|tool|>"]
    ids = template.tokenizer.convert_tokens_to_ids
    assert template.end_ids == {ids("<|tool|>"), ids("<|user|>"), ids("</s>")}


MARKED = (
    "{%- for tool in tools or [] -%}{{- tool | tojson -}}{%- endfor -%}{%- for m in messages -%}"
    "{{- '<|im_start|>' ~ m.role ~ '\n' -}}{%- if m.role == 'assistant' and not m.tool_calls -%}{%- generation -%}"
    "{{- m.content ~ '<|im_end|>' -}}{%- endgeneration -%}{%- elif m.tool_calls -%}%s{%- for c in m.tool_calls -%}"
    "{{- c.function.name ~ ' ' ~ (c.function.arguments | tojson) -}}{%- endfor -%}{{- '<|im_end|>' -}}%s"
    "{%- else -%}{{- m.content ~ '<|im_end|>' -}}{%- endif -%}{{- '\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def test_generation_markers_must_hold_calls_too() -> None:
    marks = MARKED.replace("%s", "{%- generation -%}", 1).replace("%s", "{%- endgeneration -%}")
    template = Template(build_tokenizer(template=marks, special=IM))
    (row,) = template.rows(DIALOGUES["result"], TOOLS)
    assert learned(template, row) == [f"weather {WEATHER[1]}<|im_end|>", "It rains.<|im_end|>"]
    template = Template(build_tokenizer(template=MARKED.replace("%s", ""), special=IM))
    with pytest.raises(TemplateError, match="generation markers leave out a part of turn 2 or the token that ends it"):
        template.rows(DIALOGUES["result"], TOOLS)


def test_a_template_of_its_own_for_tools_is_used() -> None:
    tokenizer = build_tokenizer(special=IM)
    tokenizer.chat_template = {"default": CHATML, "tool_use": QWEN}
    template = Template(tokenizer)
    assert "Weather of a town." in template.render(DIALOGUES["result"], tools=TOOLS)
    assert len(template.rows(DIALOGUES["result"], TOOLS)) == 1
    assert "You are Qwen" not in template.render(chat([asked("Hello"), said("Yes.")]))


def test_a_long_result_is_cut_and_the_tools_are_not() -> None:
    for name in ("qwen2_5", "llama3_1"):
        template = Template(family_tokenizer(name))
        messages = chat([asked("Hour?"), calling(CLOCK), given('"dog" ' * 200), said("Nine.")])
        limit = len(template.encode(messages, TOOLS).ids) - 300
        (row,) = Chat().encode(Example(messages, tools=TOOLS), template, limit, "truncate_prompt")
        assert len(row.ids) <= limit and row.cut >= 300
        text = template.tokenizer.decode(row.ids)
        assert "Weather of a town." in text and learned(template, Row(row.ids, row.labels))[1].startswith("Nine.")


def test_plain_text_cannot_show_tools() -> None:
    template = Template(family_tokenizer("qwen2_5"))
    for example in (Example(DIALOGUES["call"]), Example(chat([asked("Q"), said("A")]), tools=TOOLS)):
        with pytest.raises(RowError, match="the row has tools, which plain text cannot show"):
            Complete().encode(example, template, 999, "stop")


def test_the_check_looks_at_the_prompts_with_their_tools() -> None:
    from luthier.data.checks.mask import _prompt_masked

    template = Template(family_tokenizer("qwen2_5"))
    example = Example(DIALOGUES["result"], tools=TOOLS)
    (row,) = Chat().encode(example, template, 9999, "stop")
    assert _prompt_masked(example, [row], template)
    row.labels[len(template.prompt_ids(example.messages[:1])) + 5] = 7  # within the prompt only where tools count
    assert not _prompt_masked(example, [row], template)


def test_tags_are_tokens_in_the_fixtures() -> None:
    tokenizer = family_tokenizer("qwen2_5")
    assert all(len(tokenizer(tag, add_special_tokens=False)["input_ids"]) == 1 for tag in TAGS)


def test_a_tokenizer_that_renders_in_its_own_way_is_asked_with_the_tools() -> None:
    from transformers import PreTrainedTokenizerFast

    class Own(PreTrainedTokenizerFast):
        def apply_chat_template(self, *arguments: Any, tools: Any = None, **options: Any) -> Any:
            self.seen = [*getattr(self, "seen", []), bool(tools)]
            return super().apply_chat_template(*arguments, tools=tools, **options)

    tokenizer = family_tokenizer("qwen2_5")
    tokenizer.__class__ = Own
    template = Template(tokenizer)
    assert template.end_ids
    tokenizer.seen = []
    assert len(template.rows(DIALOGUES["result"], TOOLS)) == 1
    assert tokenizer.seen and all(tokenizer.seen)
