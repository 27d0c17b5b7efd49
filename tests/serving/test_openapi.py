"""The server does what its own OpenAPI description says, whatever is sent: schemathesis makes the requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from luthier.serving.engine.engine import Engine
from luthier.serving.http.settings import ServerLimits


@pytest.fixture(scope="module")
def described(adapter: Callable[..., Path], serving: Callable[..., str]) -> Any:
    engine = Engine.open([f"one={adapter('lora')}", f"two={adapter('houlsby')}"], rows=4, waiting=64)
    url = serving(engine, limits=ServerLimits(max_tokens=8, max_body=50_000))
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


OPERATIONS = [
    "GET /health",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
]

OURS = ("tokens", "a token beyond", "a special token", "differ", "needs logprobs", "messages:", "template")
"""Of what a request is told that the description allows."""


def test_no_operation_is_left_out(described: Any) -> None:
    assert [made.ok().label for made in described.get_all_operations()] == OPERATIONS


# Not by schemathesis' own parametrize: its plugin (4.32.5) asks pytest 9.2 for an attribute that is gone.
@pytest.mark.parametrize("label", OPERATIONS)
@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_every_request_gets_an_answer_that_the_description_knows(described: Any, label: str, mode: Any) -> None:
    operation = next(made.ok() for made in described.get_all_operations() if made.ok().label == label)
    if mode is schemathesis.GenerationMode.NEGATIVE and label in OPERATIONS[:2]:
        pytest.skip("it takes nothing that could be wrong")

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def ask(case: Any) -> None:
        response = case.call()
        seen.append(response.status_code)
        own = mode is schemathesis.GenerationMode.POSITIVE and response.status_code == 400
        if own:
            assert any(words in response.json()["error"]["message"] for words in OURS), response.text
        # What a schema cannot say (how many tokens a text has) is ours to refuse.
        excluded = [positive_data_acceptance] if own else []
        if response.status_code == 413:  # a list of a thousand parts is refused for its bytes, before anyone reads it
            excluded.append(negative_data_rejection)
        case.validate_response(response, excluded_checks=excluded)

    seen: list[int] = []
    ask()
    assert mode is schemathesis.GenerationMode.NEGATIVE or 200 in seen
