"""The loss mask: answers and the token that ends them, nothing else, and a clear stop where that cannot be told."""

from __future__ import annotations

import pytest

from luthier.core.errors import TemplateError
from luthier.rendering.chat_template import CHATML, PLAIN, Template
from luthier.rendering.example import Message
from luthier.rendering.row import IGNORED
from tests.conftest import build_tokenizer

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
DIALOGUE = [
    Message("user", "Hello, how are you?"),
    Message("assistant", "A good day.", learn=True),
    Message("user", "你是谁？"),
    Message("assistant", "我叫琴匠。", learn=True),
]
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def learned_text(template: Template, messages: list[Message]) -> str:
    tokens = template.encode(messages)
    return str(template.tokenizer.decode([label for label in tokens.labels if label != IGNORED]))


@pytest.mark.parametrize(
    ("own", "special", "end"),
    [
        (None, (), "</s>"),
        (None, CHATML_TOKENS, "<|im_end|>"),
        (LLAMA2, (), "</s>"),
        (CHATML, CHATML_TOKENS, "<|im_end|>"),
    ],
    ids=["plain default", "chatml default", "llama2", "own chatml"],
)
def test_answers_and_their_end_are_learned_and_nothing_else(
    own: str | None, special: tuple[str, ...], end: str
) -> None:
    template = Template(build_tokenizer(template=own, special=special))
    tokens = template.encode(DIALOGUE)
    said = learned_text(template, DIALOGUE).replace(" ", "")
    assert said == f"Agoodday.{end}我叫琴匠。{end}"
    assert all(label in (IGNORED, token) for label, token in zip(tokens.labels, tokens.ids, strict=True))
    turns = [{"role": m.role, "content": m.content} for m in DIALOGUE]
    whole = template.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    assert tokens.ids == list(whole), "the pieces are the whole that the template makes"
    assert template.tokenizer.convert_tokens_to_ids(end) in template.end_ids


def test_in_use_the_model_sees_just_the_tokens_before_the_answer() -> None:
    for special in ((), CHATML_TOKENS):
        template = Template(build_tokenizer(special=special))
        tokens = template.encode(DIALOGUE[:2])
        start = next(i for i, label in enumerate(tokens.labels) if label != IGNORED)
        assert template.prompt_ids(DIALOGUE[:1]) == tokens.ids[:start]


def test_the_end_token_is_learned_where_pad_is_the_same_token() -> None:
    from luthier.rendering.row import Row
    from luthier.tasks.chat import Chat

    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    template = Template(tokenizer)
    short, long = template.encode(DIALOGUE[:2]), template.encode(DIALOGUE)
    rows = [Row(t.ids, t.labels, "") for t in (short, long)]
    batch = Chat().collate(rows, tokenizer.pad_token_id)
    assert (batch["labels"][0] == tokenizer.eos_token_id).sum() == 1
    assert (batch["labels"][1] == tokenizer.eos_token_id).sum() == 2
    padding = batch["attention_mask"][0] == 0
    assert padding.sum() == len(long.ids) - len(short.ids) and (batch["labels"][0][padding] == IGNORED).all()


def test_only_messages_marked_for_it_are_learned() -> None:
    template = Template(build_tokenizer())
    first_silent = [DIALOGUE[0], Message("assistant", "A good day."), *DIALOGUE[2:]]
    assert learned_text(template, first_silent) == "我叫琴匠。</s>"


def test_a_template_without_an_end_token_is_refused() -> None:
    with pytest.raises(TemplateError, match="no special token, so the model would never learn to stop"):
        Template(build_tokenizer(template="{% for m in messages %}{{ m['content'] }}\n{% endfor %}")).encode(DIALOGUE)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    rewriting = "{% for m in messages %}{{ loop.length }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
    with pytest.raises(TemplateError, match="renders turn 2 differently"):
        Template(build_tokenizer(template=rewriting)).encode(DIALOGUE)


def test_a_token_across_the_start_of_the_answer_is_refused() -> None:
    glued = (
        "{% for m in messages %}{{ 'ke' if m['role'] == 'assistant' else '' }}{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}ke{% endif %}"
    )
    tokenizer = build_tokenizer(template=glued)
    assert tokenizer.tokenize("kettle")[0] == "ket"
    with pytest.raises(TemplateError, match="a token spans the start of the answer"):
        Template(tokenizer).encode([Message("user", "Q"), Message("assistant", "ttle", learn=True)])


def test_the_default_template_is_said_and_kept() -> None:
    tokenizer = build_tokenizer()
    template = Template(tokenizer)
    assert template.source == "Luthier's default (User: / Assistant:)" and tokenizer.chat_template == PLAIN
    assert template.render(DIALOGUE[:2]) == "<s>User:\nHello, how are you?\nAssistant:\nA good day.</s>\n"
    assert Template(tokenizer).source == "the tokenizer's own", "saved with the run, it is the tokenizer's from then on"


def test_a_tokenizer_that_can_never_end_an_answer_is_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    template = Template(tokenizer)
    assert template.source == "none", "which is enough to classify: BERT's tokenizer has no end token"
    with pytest.raises(TemplateError, match="neither a chat template nor an end token"):
        template.encode(DIALOGUE)


def test_an_end_of_turn_without_a_role_of_its_own_counts() -> None:
    """Phi's <|end|> is special, but neither eos nor among the extra special tokens."""
    from tokenizers import AddedToken

    template = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    tokenizer = build_tokenizer(template=template)
    tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in tokenizer.all_special_ids
    own = Template(tokenizer)
    assert learned_text(own, DIALOGUE).replace(" ", "") == "Agoodday.<|end|>我叫琴匠。<|end|>"
    assert own.end_ids == {tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id}
