"""The answers to one HTTP request: from the chunks of the engine to one response, or to a stream of events."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import Request

from luthier.core.errors import InputError
from luthier.core.strict_json import to_json
from luthier.serving.engine.engine import Engine
from luthier.serving.engine.models import ServedModel
from luthier.serving.engine.requests import Chunk, GenerationRequest, QueueFull, SamplingParams, ScoredToken
from luthier.serving.http.guard import ApiError

STOPPING = "the server is stopping"


class Generation:
    """Submits prompts to the engine, receives the chunks of their answers and returns them in OpenAI's JSON."""

    def __init__(
        self,
        engine: Engine,
        model: ServedModel,
        prompts: Sequence[list[int]],
        n: int,
        sampling: SamplingParams,
        chat: bool,
    ) -> None:
        """Ask for `n` answers to each prompt, as `chat` or completions; ApiError if the engine does not accept them."""
        self.tokenizer, self.chat, self.logprobs = model.template.tokenizer, chat, sampling.logprobs is not None
        self.prompt_tokens = sum(map(len, prompts))
        name = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.frame = {"id": name, "created": int(time.time()), "model": model.name}
        self.loop = asyncio.get_running_loop()
        self.chunks: asyncio.Queue[tuple[int, Chunk]] = asyncio.Queue()
        self.requests = []
        for number, ids in enumerate(ids for ids in prompts for _ in range(n)):
            # With a seed, each choice has another seed.
            own = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + number)
            self.requests.append(GenerationRequest(model.name, ids, own, partial(self._deliver, number)))
        capacity = engine.max_rows + engine.max_waiting
        if len(self.requests) > capacity:
            message = f"the request asks for {len(self.requests)} answers, and this server takes {capacity} at a time"
            raise ApiError(400, f"{message}: send fewer prompts, or a smaller n", None, "n")
        try:
            engine.submit(self.requests)
        except QueueFull as full:
            status, code = (503, "stopping") if engine.closing else (429, "queue_full")
            raise ApiError(status, str(full), code, retry_after="1") from None
        except InputError as error:
            raise ApiError(400, error.message) from None

    def _deliver(self, number: int, chunk: Chunk) -> None:
        try:
            self.loop.call_soon_threadsafe(self.chunks.put_nowait, (number, chunk))
        except RuntimeError:  # the server has stopped, so the client is gone
            return

    def cancel(self) -> None:
        for request in self.requests:
            request.cancelled.set()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        """Yield (number of the answer, chunk) until every answer has ended; closing the iterator cancels them."""
        open_ = len(self.requests)
        try:
            while open_:
                number, chunk = await self.chunks.get()
                open_ -= chunk.finish is not None
                yield number, chunk
        finally:
            self.cancel()

    async def whole(self, http: Request) -> dict[str, Any]:
        """Return the complete response. If the client disconnects, generation stops."""

        async def watch() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            self.cancel()

        answers: list[list[Chunk]] = [[] for _ in self.requests]
        watching = asyncio.create_task(watch())
        try:
            async for number, chunk in self:
                answers[number].append(chunk)
        finally:
            watching.cancel()
        choices = []
        for number, chunks in enumerate(answers):
            last = chunks[-1]
            if last.finish == "error":
                raise ApiError(500, last.error, "engine_error")
            if last.finish == "cancelled":
                raise ApiError(503, STOPPING, "stopping", retry_after="1")
            text = "".join(chunk.text for chunk in chunks)
            content = {"message": {"content": text}} if self.chat else {"text": text}
            tokens = [token for chunk in chunks for token in chunk.logprobs]
            choices.append(self._choice(number, content, last.finish, tokens if self.logprobs else None))
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self.frame, "object": kind, "choices": choices, "usage": self._usage([each[-1] for each in answers])}

    async def events(self, *, usage: bool) -> AsyncIterator[bytes]:
        """Yield the server-sent events of a stream; with `usage`, the last one has the token counts."""
        last: dict[int, Chunk] = {}
        for number in range(len(self.requests) if self.chat else 0):
            yield self._event([self._choice(number, {"delta": {"role": "assistant", "content": ""}}, None, None)])
        async for number, chunk in self:
            if chunk.finish in ("error", "cancelled"):
                yield _encoded(ApiError(500, chunk.error or STOPPING, "engine_error").body)
                self.cancel()
                return
            last[number] = chunk
            delta = {"delta": {"content": chunk.text} if chunk.text else {}}
            tokens = chunk.logprobs if self.logprobs and chunk.logprobs else None
            yield self._event(
                [self._choice(number, delta if self.chat else {"text": chunk.text}, chunk.finish, tokens)]
            )
        if usage:
            yield self._event([], usage=self._usage(list(last.values())))
        yield _encoded("[DONE]")

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return _encoded({**self.frame, "object": kind, "choices": choices, **more})

    def _usage(self, last: Sequence[Chunk]) -> dict[str, int]:
        """Return the token counts; `last` are the last chunks of the answers."""
        tokens = sum(chunk.tokens for chunk in last)
        total = self.prompt_tokens + tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens, "total_tokens": total}

    def _choice(
        self, number: int, content: dict[str, Any], finish: str | None, tokens: Sequence[ScoredToken] | None
    ) -> dict[str, Any]:
        logprobs = None if tokens is None else self._chat_logprobs(tokens) if self.chat else self._logprobs(tokens)
        return {"index": number, **content, "logprobs": logprobs, "finish_reason": finish}

    def _chat_logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        def one(number: int, logprob: float) -> dict[str, Any]:
            text = self._text(number)
            return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

        return {
            "content": [{**one(t.token, t.logprob), "top_logprobs": [one(*pair) for pair in t.top]} for t in tokens]
        }

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        texts = [self._text(each.token) for each in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [each.logprob for each in tokens],
            "top_logprobs": [{self._text(number): value for number, value in each.top} for each in tokens],
            "text_offset": [sum(map(len, texts[:number])) for number in range(len(texts))],
        }

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token], skip_special_tokens=False))


def _encoded(data: dict[str, Any] | str) -> bytes:
    """Return a server-sent event."""
    text = data if isinstance(data, str) else to_json(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
