"""What any server of ours promises to OpenAI's client: each check takes a client and names of models.

They run against Luthier's own server, and against vLLM's where one is up (see test_vllm).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import openai
import pytest

HI: Any = [{"role": "user", "content": "Where do I find my invoice?"}]
ON: dict[str, Any] = {"extra_body": {"ignore_eos": True}}
"""An answer that goes on to its last token."""


def lists_its_models(client: openai.OpenAI, models: Sequence[str]) -> None:
    assert [model.id for model in client.models.list()] == list(models)


def a_stream_says_what_an_answer_says(client: openai.OpenAI, models: Sequence[str]) -> None:
    for model in models:
        whole = client.chat.completions.create(model=model, messages=HI, temperature=0, max_tokens=20)
        events = list(
            client.chat.completions.create(
                model=model,
                messages=HI,
                temperature=0,
                max_tokens=20,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        choices = [event.choices[0] for event in events if event.choices]
        assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
        assert choices[-1].finish_reason == whole.choices[0].finish_reason
        assert events[-1].usage is not None and whole.usage is not None
        assert events[-1].usage.completion_tokens == whole.usage.completion_tokens


def models_answer_differently(client: openai.OpenAI, models: Sequence[str]) -> None:
    answers = [
        client.chat.completions.create(model=model, messages=HI, temperature=0, max_tokens=20, **ON)
        for model in models[:2]
    ]
    assert len({answer.choices[0].message.content for answer in answers}) == 2


def completes_a_text(client: openai.OpenAI, models: Sequence[str]) -> None:
    made = client.completions.create(model=models[-1], prompt="The kettle", temperature=0, max_tokens=6, **ON)
    assert made.choices[0].text and made.choices[0].finish_reason == "length"
    several = client.completions.create(model=models[-1], prompt=["The kettle", "A"], temperature=0, max_tokens=6, **ON)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == made.choices[0].text


def a_stop_text_ends_an_answer(client: openai.OpenAI, models: Sequence[str]) -> None:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(
            model=models[-1], messages=HI, temperature=0, max_tokens=24, **ON, **options
        ).choices[0]

    said = ask().message.content
    stop = said[4:7]
    made = ask(stop=stop)
    assert made.message.content == said[: said.find(stop)] and made.finish_reason == "stop"


def a_limit_ends_an_answer_and_is_counted(client: openai.OpenAI, models: Sequence[str]) -> None:
    made = client.chat.completions.create(model=models[-1], messages=HI, temperature=0, max_tokens=5, **ON)
    assert made.choices[0].finish_reason == "length" and made.usage is not None
    assert made.usage.completion_tokens == 5 and made.usage.prompt_tokens > 5
    assert made.usage.total_tokens == made.usage.prompt_tokens + 5


def a_seed_repeats_an_answer(client: openai.OpenAI, models: Sequence[str]) -> None:
    def ask(seed: int) -> str | None:
        made = client.chat.completions.create(
            model=models[-1], messages=HI, temperature=1, seed=seed, max_tokens=16, **ON
        )
        return made.choices[0].message.content

    assert ask(7) == ask(7) != ask(8)


def probabilities_are_told(client: openai.OpenAI, models: Sequence[str]) -> None:
    made = client.chat.completions.create(
        model=models[-1], messages=HI, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3, **ON
    ).choices[0]
    assert made.logprobs is not None and made.logprobs.content is not None and len(made.logprobs.content) == 5
    for token in made.logprobs.content:
        top = [each.logprob for each in token.top_logprobs]
        assert len(top) == 3 and top == sorted(top, reverse=True) and token.logprob == top[0] <= 0


def an_unknown_model_is_not_found(client: openai.OpenAI, models: Sequence[str]) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=HI)


def a_bad_value_is_refused(client: openai.OpenAI, models: Sequence[str]) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=models[-1], messages=HI, temperature=-1)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=models[-1], messages=HI, max_tokens=10**6)


def a_wrong_key_is_refused(client: openai.OpenAI, models: Sequence[str]) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


CHECKS: list[Callable[[openai.OpenAI, Sequence[str]], None]] = [
    lists_its_models,
    a_stream_says_what_an_answer_says,
    models_answer_differently,
    completes_a_text,
    a_stop_text_ends_an_answer,
    a_limit_ends_an_answer_and_is_counted,
    a_seed_repeats_an_answer,
    probabilities_are_told,
    an_unknown_model_is_not_found,
    a_bad_value_is_refused,
    a_wrong_key_is_refused,
]
