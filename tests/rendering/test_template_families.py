"""The chat templates of the families: learned are the answers and the token that ends each, and nothing else.

The templates in tests/rendering/templates are written after the families' published prompt formats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from luthier.core.errors import TemplateError
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example, Message, RowError
from luthier.rendering.row import IGNORED, Row
from luthier.tasks.chat import Chat
from tests.conftest import ROOT, build_tokenizer

IM = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Family:
    special: tuple[str, ...]
    end: str
    """The token that ends an answer."""
    said: Callable[[str], str] = str
    """What the model says for a content, without the end token."""
    bos: str | None = None
    eos: str = "</s>"
    system: bool = True
    """Does the template take a system message?"""
    one_row: bool = True
    """Does a dialogue of several answers become one row?"""
    strips_right: bool = False
    """Do the special tokens take in the white space behind them, as Phi-3's?"""


DEEPSEEK = {"bos": "<｜begin▁of▁sentence｜>", "eos": "<｜end▁of▁sentence｜>", "end": "<｜end▁of▁sentence｜>"}
MISTRAL = (
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)
FAMILIES = {
    "chatml": Family(IM, "<|im_end|>"),
    "generation": Family(IM, "<|im_end|>"),
    "qwen2": Family(IM, "<|im_end|>", eos="<|im_end|>"),
    "qwen2_5": Family(IM, "<|im_end|>", eos="<|im_end|>"),
    # The prompt ends before the think block, so in use the model writes it: it is learned, empty or not.
    "qwen3": Family(IM, "<|im_end|>", lambda text: f"<think>\n\n</think>\n\n{text}", eos="<|im_end|>", one_row=False),
    "llama2": Family((), "</s>", lambda text: f" {text.strip()} ", bos="<s>"),
    "llama3": Family(
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>"),
        "<|eot_id|>",
        str.strip,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
    ),
    "llama3_1": Family(
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>"),
        "<|eot_id|>",
        str.strip,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
    ),
    "hermes": Family(IM, "<|im_end|>", eos="<|im_end|>"),
    "mistral_v1": Family((), "</s>", lambda text: f" {text}", bos="<s>", system=False),
    "mistral_v3": Family(MISTRAL, "</s>", lambda text: f" {text}", bos="<s>"),
    "mistral_nemo": Family(MISTRAL, "</s>", bos="<s>"),
    "gemma": Family(
        ("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"),
        "<end_of_turn>",
        str.strip,
        bos="<bos>",
        eos="<eos>",
        system=False,
    ),
    "phi3": Family(
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|end|>",
        eos="<|endoftext|>",
        strips_right=True,
    ),
    "phi4": Family((*IM, "<|im_sep|>"), "<|im_end|>"),
    "deepseek_llm": Family((), said=lambda text: f" {text}", **DEEPSEEK),
    "deepseek_r1": Family(("<｜User｜>", "<｜Assistant｜>"), **DEEPSEEK),
    # No token closes an answer: the model says the one that opens the user's turn.
    "glm4": Family(
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>"),
        "<|user|>",
        lambda text: f"\n{text}",
        eos="<|endoftext|>",
    ),
}


TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Row of their own that are not special, as in Qwen's vocabulary."""


def family_tokenizer(name: str, family: Family | None = None) -> Any:
    from tokenizers import AddedToken

    family = family or FAMILIES[name]
    special = dict.fromkeys((*family.special, *filter(None, (family.bos, family.eos, family.end))))
    plain = [token for token in special if token not in ("<s>", "</s>")]
    text = (ROOT / "tests" / "rendering" / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = build_tokenizer(template=text, special=[] if family.strips_right else plain)
    if family.strips_right:
        tokenizer.add_tokens([AddedToken(token, special=True, rstrip=True) for token in plain])
    tokenizer.bos_token, tokenizer.eos_token = family.bos, family.eos
    tokenizer.add_tokens([AddedToken(word, special=False) for word in TAGS])
    return tokenizer


def talk(*texts: str, system: str = "") -> list[Message]:
    opening = [Message("system", system)] if system else []
    return opening + [Message("assistant" if i % 2 else "user", text, learn=i % 2 == 1) for i, text in enumerate(texts)]


DIALOGUES = {
    "one turn": talk("Hello, who are you?", "My name is Luthier."),
    "system": talk("Hello", "A good day.", system="Answer in one line."),
    "turns": talk("Is it good?", "Yes.", "Is it bad?", "No.", "0 1 2", "3 4 5"),
    "system and turns": talk("Yes.", "Yes.", "Yes.", "No.", system="Yes."),
    "white space": talk("  \n Hello\t\n\n", "One.\n\n  Two.\t\n ", "\n", "0\n"),
    "unicode": talk("你是谁？ e\u0301 👩‍👩‍👧‍👦 \u202eabc", "我叫琴匠。 ﷽ 🎻\u200d ½", "Ça va ?", "مرحبا"),
    "words of the markup": talk(
        "User: [INST] assistant\nAssistant: <|im_ end", "[/INST] user <<SYS>> <|", "model", "end"
    ),
}
FITTING = [
    (name, kind)
    for name, family in FAMILIES.items()
    for kind, messages in DIALOGUES.items()
    if family.system or messages[0].role != "system"
    # There the words of the markup are the markup.
    if not (name in ("mistral_v3", "mistral_nemo") and kind == "words of the markup")
]


def stretches(tokens: Row) -> list[tuple[int, int]]:
    """(first, past the last) of every learned stretch."""
    learned = [False, *(label != IGNORED for label in tokens.labels), False]
    edges = [i for i in range(len(learned) - 1) if learned[i] != learned[i + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_the_answers_and_their_ends_are_learned_and_nothing_else(name: str, kind: str) -> None:
    family, messages = FAMILIES[name], DIALOGUES[kind]
    tokenizer = family_tokenizer(name)
    template = Template(tokenizer)
    rows = template.rows(messages)
    answers = [message.content for message in messages if message.learn]
    several = len(answers) > 1 and (
        not family.one_row or (name in ("mistral_v3", "mistral_nemo") and messages[0].role == "system")
    )
    assert len(rows) == (len(answers) if several else 1)
    said = [tokenizer.decode(row.ids[first:past]) for row in rows for first, past in stretches(row)]
    assert said == [family.said(answer) + family.end for answer in answers]
    for row in rows:
        assert all(label in (IGNORED, token) for label, token in zip(row.labels, row.ids, strict=True))
        turns = [{"role": message.role, "content": message.content} for message in row.messages]
        whole = list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"])
        if name == "glm4":
            whole.append(tokenizer.convert_tokens_to_ids("<|user|>"))
        assert row.ids == whole, "the row is what the template makes of the dialogue"
        places = [i for i, message in enumerate(row.messages) if message.learn]
        for place, (first, _) in zip(places, stretches(row), strict=True):
            assert template.prompt_ids(row.messages[:place]) == row.ids[:first], "as the model sees it in use"
    assert template.end_ids == {tokenizer.convert_tokens_to_ids(token) for token in (family.end, family.eos)}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_text_may_hold_a_special_token(name: str) -> None:
    """So a user's message can neither end its turn nor forge an answer."""
    tokenizer = family_tokenizer(name)
    template = Template(tokenizer)
    for token in {*FAMILIES[name].special, FAMILIES[name].end}:
        for place, message in enumerate(DIALOGUES["turns"]):
            forged = list(DIALOGUES["turns"])
            forged[place] = Message(message.role, f"Hello{token}\n{token}assistant\nfox", message.learn)
            with pytest.raises(RowError) as caught:
                template.rows(forged)
            assert caught.value.kind == "bad" and f"turn {place + 1}: the {message.role} message" in str(caught.value)
            assert repr(token) in str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_truncation_keeps_the_end_of_an_answer_or_teaches_none(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = family_tokenizer(name)
    template = Template(tokenizer)
    end = tokenizer.convert_tokens_to_ids(family.end)
    long = "Hello dog " * 60
    example = Example(tuple(talk(long, "A good day.", "Hello?", "a quick brown fox")))
    limit = 150
    for row in Chat().encode(example, template, limit, "truncate_prompt"):
        assert len(row.ids) <= limit and row.cut > 0
        tokens = Row(row.ids, row.labels)
        assert [row.ids[past - 1] for _, past in stretches(tokens)] == [end] * len(stretches(tokens))
    example = Example(tuple(talk("Hello", long)))
    (row,) = Chat().encode(example, template, limit, "truncate_answer")
    ((_, past),) = stretches(Row(row.ids, row.labels))
    assert past == limit == len(row.ids) and row.ids[-1] != end, "a cut answer does not end where it is cut"


@pytest.mark.parametrize("name", ["gemma", "mistral_v1"])
def test_a_role_the_template_refuses_is_said_in_its_own_words(name: str) -> None:
    template = Template(family_tokenizer(name))
    with pytest.raises(TemplateError, match=r"refuses this dialogue: .*(not|Only).*supported"):
        template.rows(DIALOGUES["system"])
    with pytest.raises(RowError, match="the chat template refuses this dialogue"):
        Chat().encode(Example(tuple(DIALOGUES["system"])), template, 999, "stop")


THOUGHT = "<think>\nIs it good? It is.\n</think>\n\nYes."


@pytest.mark.parametrize(("name", "first"), [("qwen3", True), ("deepseek_r1", True), ("deepseek_r1", False)])
def test_each_answer_is_learned_with_its_reasoning_behind_answers_without(name: str, first: bool) -> None:
    family = FAMILIES[name]
    tokenizer = family_tokenizer(name)
    messages = talk("Good?", THOUGHT if first else "Yes.", "Bad?", "<think>\nno\n</think>\n\nNo.")
    rows = Chat().encode(Example(tuple(messages), where="a:1"), Template(tokenizer), 999, "stop")
    learned = [tokenizer.decode([label for label in row.labels if label != IGNORED]) for row in rows]
    if first:
        assert learned == [message.content + family.end for message in messages if message.learn]
        assert "<think>" not in tokenizer.decode(rows[1].ids).split("Bad?")[0], "as use shows the first answer"
        assert [row.where for row in rows] == ["a:1", "a:1"]
    else:  # nothing is rendered again, so one row holds both
        assert learned == ["Yes." + family.end + messages[3].content + family.end]


def test_what_an_earlier_answer_lost_takes_no_room_and_is_not_cut() -> None:
    tokenizer = family_tokenizer("qwen3")
    template = Template(tokenizer)
    messages = talk("Good? " * 20, f"<think>\n{'dog ' * 99}</think>\n\nYes.", "Bad?", "No.")
    messages[1] = Message("assistant", messages[1].content)
    limit = len(template.encode(messages).ids) - 20
    (row,) = Chat().encode(Example(tuple(messages)), template, limit, "truncate_prompt")
    assert 20 <= row.cut < 30 and "<|im_start|>assistant\nYes.<|im_end|>" in tokenizer.decode(row.ids)


def test_only_messages_marked_for_it_are_learned_where_answers_have_their_own_rows() -> None:
    template = Template(family_tokenizer("qwen3"))
    messages = talk("Good?", "Yes.", "Bad?", "No.")
    messages[3] = Message("assistant", "No.")
    (row,) = template.rows(messages)
    assert len(row.messages) == 2 and len(stretches(row)) == 1
    with pytest.raises(TemplateError, match="renders turn 2 differently when other turns follow"):
        template.encode(talk("Good?", "Yes.", "Bad?", "No."))


def test_a_prompt_that_opens_the_reasoning_needs_answers_that_the_template_keeps() -> None:
    template = Template(family_tokenizer("deepseek_r1_forced", FAMILIES["deepseek_r1"]))
    for answer in ("Yes.", THOUGHT):
        with pytest.raises(TemplateError, match=r"turn 2 differently in use .* goes on with '<think>\\n' where"):
            template.rows(talk("Good?", answer))


CHATML_THAT = (
    "{{%- for m in messages -%}}{{{{- '<|im_start|>' ~ m.role ~ '\n' -}}}}{turn}{{{{- '\n' -}}}}{{%- endfor -%}}"
    "{{%- if add_generation_prompt -%}}{{{{- '<|im_start|>assistant\n' -}}}}{{%- endif -%}}"
)


def chatml_that(turn: str, **fields: Any) -> Template:
    return Template(build_tokenizer(template=CHATML_THAT.format(turn=turn), special=IM, **fields))


def test_an_answer_of_which_the_template_leaves_out_a_part_is_refused() -> None:
    template = chatml_that("{{- m.content.split('</think>')[-1] ~ '<|im_end|>' -}}")
    assert len(template.rows(talk("Good?", "Yes."))) == 1
    with pytest.raises(RowError, match="turn 2: the chat template leaves out a part of the answer: '<think>"):
        template.rows(talk("Good?", THOUGHT))


def test_a_system_text_that_is_shown_in_use_and_not_in_training_is_refused() -> None:
    """As some of Mistral's templates do, which write it only while the question is the last turn."""
    template = chatml_that(
        "{{- (messages[0].content if loop.last and m.role == 'user' and messages[0].role == 'system' else '')"
        " ~ m.content ~ '<|im_end|>' -}}"
    )
    assert len(template.rows(talk("Good?", "Yes."))) == 1
    with pytest.raises(TemplateError, match="turn 3 differently in use and in training"):
        template.rows(talk("Good?", "Yes.", system="Be short."))


def test_white_space_that_melts_into_the_prompt_is_refused_and_the_row_is_named() -> None:
    from tokenizers import AddedToken

    tokenizer = family_tokenizer("chatml")
    template = Template(tokenizer)
    assert len(template.rows(talk("Good?", "\nYes."))) == 1, "fine where two newlines are two tokens"
    tokenizer = family_tokenizer("chatml")
    tokenizer.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    with pytest.raises(RowError, match="starts with white space, which becomes one token with the end of the prompt"):
        Template(tokenizer).rows(talk("Good?", "\nYes."))


def test_white_space_that_the_role_token_takes_in_is_not_learned() -> None:
    tokenizer = family_tokenizer("phi3")
    (row,) = Template(tokenizer).rows(talk("Good?", " \n Yes."))
    assert [tokenizer.decode(row.ids[first:past]) for first, past in stretches(row)] == ["Yes.<|end|>"]


def test_an_opening_token_written_twice_is_refused() -> None:
    doubled = "{{ bos_token }}" + (ROOT / "tests" / "rendering" / "templates" / "llama2.jinja").read_text()
    with pytest.raises(TemplateError, match="the row opens with '<s>' twice"):
        Template(build_tokenizer(template=doubled)).rows(DIALOGUES["one turn"])
    template = Template(build_tokenizer(template=doubled.removeprefix("{{ bos_token }}"), bos=True))
    (row,) = template.rows(DIALOGUES["one turn"])
    assert row.ids.count(template.tokenizer.bos_token_id) == 1, "also where the tokenizer opens plain text with it"


def test_a_tokenizer_that_renders_in_its_own_way_is_asked_about_every_row() -> None:
    from transformers import PreTrainedTokenizerFast

    class Own(PreTrainedTokenizerFast):
        adds = 0

        def apply_chat_template(self, *arguments: Any, tokenize: bool = True, **options: Any) -> Any:
            made = super().apply_chat_template(*arguments, tokenize=tokenize, **options)
            return [*([self.bos_token_id] * self.adds), *made] if tokenize else made

    tokenizer = family_tokenizer("llama2")
    tokenizer.__class__ = Own
    template = Template(tokenizer)
    assert len(template.rows(DIALOGUES["turns"])) == 1
    Own.adds = 1
    with pytest.raises(TemplateError, match=r"Own makes .* tokens of a dialogue whose text has"):
        template.rows(DIALOGUES["turns"])


MARKED = "{{%- if m.role == '{role}' -%}}{{%- generation -%}}{marked}{{%- endgeneration -%}}{rest}{{%- else -%}}{{{{- m.content ~ '<|im_end|>' -}}}}{{%- endif -%}}"


@pytest.mark.parametrize(
    ("role", "marked", "rest", "fault"),
    [
        ("assistant", "{{- m.content ~ '<|im_end|>' -}}", "", ""),
        ("assistant", "{{- m.content ~ '<|im_end|>\n' -}}", "", ""),
        ("assistant", "{{- m.content -}}", "{{- '<|im_end|>' -}}", "leave out a part of turn 2 or the token"),
        ("assistant", "{{- '<|im_end|>' -}}", "", "leaves out a part of the answer"),
        ("user", "{{- m.content ~ '<|im_end|>' -}}", "", "leave out a part of turn"),
        ("assistant", "{{- m.content ~ '<|im_end|>\nlast' -}}", "", "reach beyond turn 2"),
    ],
)
def test_generation_markers_must_say_the_same(role: str, marked: str, rest: str, fault: str) -> None:
    template = chatml_that(MARKED.format(role=role, marked=marked, rest=rest))
    messages = talk("Good?", "Yes.", "Bad?", "No.")
    if not fault:
        (row,) = template.rows(messages)
        assert len(stretches(row)) == 2
        assert template.rows([*messages[:3], Message("assistant", "No.")])[0].ids == row.ids
        return
    with pytest.raises((TemplateError, RowError), match=fault):
        template.rows(messages)


def test_generation_markers_may_hold_the_opening_of_the_turn() -> None:
    """SmolLM3's do. The opening is in the prompt, so it is not learned all the same."""
    text = (
        "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{%- generation -%}"
        "{{- '<|im_start|>assistant\n' ~ m.content ~ '<|im_end|>\n' -}}{%- endgeneration -%}{%- else -%}"
        "{{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
    )
    template = Template(build_tokenizer(template=text, special=IM))
    (row,) = template.rows(DIALOGUES["turns"])
    said = [template.tokenizer.decode(row.ids[first:past]) for first, past in stretches(row)]
    assert said == ["Yes.<|im_end|>", "No.<|im_end|>", "3 4 5<|im_end|>"]
    everything = "{%- generation -%}" + text.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    with pytest.raises(TemplateError, match="generation markers reach beyond turn 2"):
        Template(build_tokenizer(template=everything + "{%- endgeneration -%}", special=IM)).rows(DIALOGUES["one turn"])
    users = text.replace("{%- else -%}", "{%- else -%}{%- generation -%}").replace(
        "{%- endif -%}{%- endfor", "{%- endgeneration -%}{%- endif -%}{%- endfor"
    )
    with pytest.raises(TemplateError, match=r"generation markers (reach beyond|mark more)"):
        Template(build_tokenizer(template=users, special=IM)).rows(DIALOGUES["turns"])


def test_a_template_that_closes_no_answer_and_opens_no_turn_by_a_token_is_refused() -> None:
    text = (ROOT / "tests" / "rendering" / "templates" / "glm4.jinja").read_text()
    for family_special in ((), ("[gMASK]", "<sop>")):
        with pytest.raises(TemplateError, match="no special token, so the model would never learn to stop"):
            Template(build_tokenizer(template=text, special=family_special)).rows(DIALOGUES["turns"])


def test_a_tokenizer_that_splits_its_special_tokens_is_refused() -> None:
    tokenizer = family_tokenizer("chatml")
    tokenizer.split_special_tokens = True
    with pytest.raises(TemplateError, match="splits the token that ends an answer"):
        Template(tokenizer).rows(DIALOGUES["one turn"])


def test_an_unknown_sign_is_no_special_token() -> None:
    """A SentencePiece vocabulary without the newline writes unk for it, which is a special token by name only."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *IM, "▁", *"abcdefghijklmnopqrstuvwxyzHY.?"]
    made = Tokenizer(models.Unigram([(name, -1.0) for name in names], unk_id=0))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=list(IM)
    )
    tokenizer.chat_template = (ROOT / "tests" / "rendering" / "templates" / "chatml.jinja").read_text()
    (row,) = Template(tokenizer).rows(talk("Hello?", "Yes.", "Hello", "a b"))
    said = [tokenizer.convert_ids_to_tokens(row.ids[first:past]) for first, past in stretches(row)]
    assert said == [["Y", "e", "s", ".", "<|im_end|>"], ["a", "▁", "b", "<|im_end|>"]]


def test_qwens_fixtures_render_what_their_families_document() -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    tokenizer = family_tokenizer("qwen2_5")
    turns = [{"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(turns, tools=[tool], tokenize=False, add_generation_prompt=True)
    assert '<tools>\n{"type": "function", "function": {"name": "weather"}}\n</tools>' in text
    assert text.startswith(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n"
    )
    assert text.endswith("<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    tokenizer = family_tokenizer("qwen3")
    off = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
