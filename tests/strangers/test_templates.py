"""Chat templates that would run for ever or grow without end are stopped; all others render as transformers does."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import TemplateError
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Message
from luthier.rendering.template_limits import CHARACTERS, STEPS, Budget, CountingEnvironment, apply_chat_template
from tests.conftest import ROOT, build_tokenizer

ENDLESS = {
    "nested loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "a doubling text": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "added to itself": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a doubling list": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "times": "{{ 'ab' * 10000000000 }}",
    "a macro twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "replaced": "{% set n = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set n.x = n.x.replace('a', n.x) %}{% endfor %}{{ n.x }}",
    "a wide field": "{{ 'a' | center(10000000000) }}",
    "a wide method": "{{ 'a'.ljust(10000000000) }}",
    "a power": "{{ 10 ** 10000000000 }}",
    "its own text": "{% for a in range(99999) %}" + "much to write " * 900 + "{% endfor %}",
    "printed often": "{% set x = messages[0].content * 100000 %}{% for a in range(99999) %}{{ x }}{% endfor %}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped(name: str) -> None:
    template = Template(build_tokenizer(template=ENDLESS[name]))
    began = time.monotonic()
    with pytest.raises(TemplateError, match=r"the chat template is stopped: it (takes|makes) more than"):
        template.render([Message("user", "hello there")])
    assert time.monotonic() - began < 60


DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the fox?"},
    {"role": "assistant", "content": "At home."},
    {"role": "user", "content": "And the dog? 你好 <b>&amp;"},
]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "tests" / "rendering" / "templates").glob("*.jinja")), ids=lambda file: file.stem
)
def test_every_other_renders_as_before(file: Path) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers.utils import chat_template_utils as used

    tokenizer = build_tokenizer(template=file.read_text())
    tool = {
        "type": "function",
        "function": {
            "name": "f",
            "description": "d",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "string", "description": "x"}},
                "required": ["a"],
            },
        },
    }
    for dialogue in (DIALOGUE, DIALOGUE[1:]):
        for options in ({}, {"tools": [tool]}, {"add_generation_prompt": True}):
            made = []
            for environment in (ImmutableSandboxedEnvironment, CountingEnvironment):
                used.ImmutableSandboxedEnvironment = environment
                used._compile_jinja_template.cache_clear()
                try:
                    made.append(tokenizer.apply_chat_template(dialogue, tokenize=False, **options))
                except Exception as error:
                    made.append(f"{type(error).__name__}: {error}")
            assert made[0] == made[1]


def test_a_long_dialogue_stays_far_below_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    template = Template(
        build_tokenizer(template=(ROOT / "tests" / "rendering" / "templates" / "llama3_1.jinja").read_text())
    )
    turns = [Message(("user", "assistant")[n % 2], f"turn {n} " * 200) for n in range(1999)]
    assert len(template.render(turns)) > 2_000_000
    budgets: list[Budget] = []
    monkeypatch.setattr("luthier.rendering.template_limits.Budget", lambda: budgets.append(Budget()) or budgets[-1])
    template.render(turns)
    assert STEPS - budgets[0].steps < STEPS / 50 and CHARACTERS - budgets[0].characters < CHARACTERS / 4


def test_limits_hold_in_every_thread_and_for_nobody_else() -> None:
    template = Template(build_tokenizer(template=ENDLESS["nested loops"]))
    found: list[Any] = []

    def work() -> None:
        try:
            template.render([Message("user", "hello")])
        except TemplateError as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 3
    usual = build_tokenizer(template="{% for m in messages %}{{ m.content }}{% endfor %}")
    assert apply_chat_template(usual, DIALOGUE, tokenize=False).startswith("Be brief.")
    assert usual.apply_chat_template(DIALOGUE, tokenize=False).startswith("Be brief.")
