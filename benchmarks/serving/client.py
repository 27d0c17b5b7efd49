"""Clients that ask one question after another, all streaming, by the openai package."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

WORDS = [
    "film",
    "good",
    "actors",
    "played",
    "well",
    "end",
    "came",
    "soon",
    "kettle",
    "leaks",
    "boots",
    "last",
    "long",
    "name",
    "day",
    "house",
    "water",
    "again",
]


def question(seed: int, words: int) -> str:
    """No two alike from the first word on: nothing of a prompt can be taken from another's cache."""
    draw = random.Random(seed)
    return " ".join(draw.choices(WORDS, k=words))


async def _ask(client: Any, model: str, text: str, tokens: int, extra: dict[str, Any]) -> dict[str, float]:
    began, times = time.perf_counter(), []
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": text}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
        extra_body=extra,
    )
    reason = None
    async for event in stream:
        if event.choices and event.choices[0].delta.content:
            times.append(time.perf_counter())
        reason = (event.choices[0].finish_reason if event.choices else None) or reason
    ended = time.perf_counter()
    if reason != "length":
        raise SystemExit(f"{model} ended with {reason!r}: this is no measure of {tokens} tokens")
    if not times:  # random weights, and llama.cpp holds back what is no whole character
        return {"whole": ended - began}
    return {"first": times[0] - began, "each": (times[-1] - times[0]) / (tokens - 1), "whole": ended - began}


async def _client(
    client: Any,
    number: int,
    models: Sequence[str],
    requests: int,
    words: int,
    tokens: int,
    extra: dict[str, Any],
    seed: int,
) -> list[dict[str, float]]:
    made = []
    for turn in range(requests):
        text = question(seed + 1000 * number + turn, words)
        made.append(await _ask(client, models[(number + turn) % len(models)], text, tokens, extra))
    return made


async def _load(
    url: str,
    models: Sequence[str],
    clients: int,
    requests: int,
    words: int,
    tokens: int,
    extra: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    import openai

    # llama.cpp's server closes a connection that it has called kept alive; so each question of all has one of its own.
    options: dict[str, Any] = {"max_retries": 0, "timeout": 600, "default_headers": {"connection": "close"}}
    async with openai.AsyncOpenAI(base_url=url, api_key="none", **options) as client:
        began = time.perf_counter()
        each = await asyncio.gather(
            *(_client(client, number, models, requests, words, tokens, extra, seed) for number in range(clients))
        )
        seconds = time.perf_counter() - began
    asked = [one for several in each for one in several]
    return {
        "clients": clients,
        "requests": len(asked),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": len(asked) * tokens / seconds,
        **{f"{key}_ms": 1000 * median(one[key] for one in asked if key in one) for key in ("first", "each")},
    }


def load(
    url: str,
    models: Sequence[str],
    clients: int,
    *,
    requests: int,
    words: int,
    tokens: int,
    extra: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """What so many clients see: medians over requests of the time to the first token and between two, and all tokens a
    second."""
    return asyncio.run(_load(url, models, clients, requests, words, tokens, extra, seed))
