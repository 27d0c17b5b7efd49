"""OpenAI's HTTP API over the engine. No request field becomes a path: `model` is looked up in a dictionary."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from luthier.core.errors import InputError
from luthier.core.strict_json import to_json
from luthier.core.version import __version__
from luthier.rendering.example import Message, RowError
from luthier.serving.engine.engine import Engine
from luthier.serving.engine.models import ServedModel
from luthier.serving.engine.requests import Chunk, GenerationRequest, QueueFull, SamplingParams, ScoredToken
from luthier.serving.http import protocol
from luthier.serving.http.guard import ApiError, Guard
from luthier.serving.http.protocol import Body
from luthier.serving.http.settings import ServerLimits


class Generation:
    """Submits prompts to the engine, receives the chunks of their answers and returns them in OpenAI's JSON."""

    def __init__(
        self, engine: Engine, model: ServedModel, prompts: Sequence[list[int]], sampling: SamplingParams, body: Body
    ) -> None:
        """ApiError if the engine does not accept the request."""
        self.tokenizer, self.chat, self.body = model.template.tokenizer, isinstance(body, protocol.ChatRequest), body
        self.prompt_tokens = sum(map(len, prompts))
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.frame = {"id": name, "created": int(time.time()), "model": model.name}
        self.loop = asyncio.get_running_loop()
        self.chunks: asyncio.Queue[tuple[int, Chunk]] = asyncio.Queue()
        self.tokens: Counter[int] = Counter()  # Number of the answer -> tokens generated so far
        self.requests = []
        for number, ids in enumerate(ids for ids in prompts for _ in range(body.n or 1)):
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

    def _deliver(self, number: int, chunk: Chunk) -> None:
        try:
            self.loop.call_soon_threadsafe(self.chunks.put_nowait, (number, chunk))
        except RuntimeError:  # the server has stopped, so the client is gone
            return

    def cancel(self) -> None:
        for request in self.requests:
            request.cancelled.set()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        """Yield (number of the answer, chunk) until all have ended; ApiError if one fails. Closing it cancels them."""
        open_ = len(self.requests)
        try:
            while open_:
                number, chunk = await self.chunks.get()
                if chunk.finish == "error":
                    raise ApiError(500, chunk.error, "engine_error")
                if chunk.finish == "cancelled":
                    raise ApiError(503, "the server is stopping", "stopping", retry_after="1")
                open_ -= chunk.finish is not None
                self.tokens[number] = chunk.tokens
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
            text = "".join(chunk.text for chunk in chunks)
            content = {"message": {"content": text}} if self.chat else {"text": text}
            tokens = [token for chunk in chunks for token in chunk.logprobs]
            choices.append(self._choice(number, content, chunks[-1].finish, tokens))
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self.frame, "object": kind, "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the server-sent events of a stream."""
        for number in range(len(self.requests) if self.chat else 0):
            yield self._event([self._choice(number, {"delta": {"role": "assistant", "content": ""}}, None, [])])
        try:
            async for number, chunk in self:
                delta = {"delta": {"content": chunk.text} if chunk.text else {}}
                content = delta if self.chat else {"text": chunk.text}
                yield self._event([self._choice(number, content, chunk.finish, chunk.logprobs)])
        except ApiError as error:
            yield _encoded(error.body)
            return
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield self._event([], usage=self._usage())
        yield _encoded("[DONE]")

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return _encoded({**self.frame, "object": kind, "choices": choices, **more})

    def _usage(self) -> dict[str, int]:
        prompt, completion = self.prompt_tokens, self.tokens.total()
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _choice(self, number: int, content: Any, finish: str | None, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        logprobs = self._logprobs(tokens) if tokens else None
        return {"index": number, **content, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        def one(number: int, logprob: float) -> dict[str, Any]:
            text = self._text(number)
            return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

        if self.chat:
            content = [{**one(t.token, t.logprob), "top_logprobs": [one(*pair) for pair in t.top]} for t in tokens]
            return {"content": content}
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


class Service:
    """The endpoints. Their docstrings are part of the OpenAPI description."""

    def __init__(self, engine: Engine, limits: ServerLimits) -> None:
        self.engine, self.limits = engine, limits
        self.started = int(time.time())

    async def health(self) -> protocol.Health:
        """Return the state of the server and its counts."""
        counts: Any = self.engine.counts
        running, waiting = len(self.engine.running), len(self.engine.waiting)
        status: Any = "stopping" if self.engine.closing else "ok"
        return protocol.Health(**counts, status=status, running=running, waiting=waiting)

    async def models(self) -> protocol.ModelList:
        """List the base and all fine-tuned models."""
        return protocol.ModelList(data=[await self.model(name) for name in self.engine.models])

    async def model(self, model: str) -> protocol.ModelCard:
        """Describe one model."""
        found = self._find(model)
        return protocol.ModelCard(id=model, created=self.started, root=found.kind, max_model_len=found.limit)

    async def chat(self, body: protocol.ChatRequest, http: Request) -> Any:
        """Answer a conversation, in the model's own chat template."""
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        return await self._answer(_chat_ids, body.max_completion_tokens or body.max_tokens, logprobs, body, http)

    async def complete(self, body: protocol.CompletionRequest, http: Request) -> Any:
        """Continue a text."""
        return await self._answer(_prompt_ids, body.max_tokens or 16, body.logprobs, body, http)

    def _find(self, name: str) -> ServedModel:
        if name not in self.engine.models:
            known = ", ".join(self.engine.models)
            raise ApiError(404, f"there is no model {name!r} here; there are: {known}", "model_not_found", "model")
        return self.engine.models[name]

    async def _answer(self, read: Any, wanted: int | None, logprobs: int | None, body: Body, http: Request) -> Any:
        """Answer the prompts that `read` finds in the body, with `wanted` tokens each; ApiError if that is too many."""
        model = self._find(body.model)
        prompts = await asyncio.to_thread(read, model, body)
        tokens, limit = max(map(len, prompts)), min(model.limit - 1, self.limits.max_prompt or model.limit)
        if tokens > limit:
            raise ApiError(400, f"the prompt has {tokens} tokens, and the limit is {limit}", "context_length_exceeded")
        most = min(model.limit - tokens, self.limits.max_tokens)
        if wanted is not None and wanted > model.limit - tokens:
            message = f"{tokens} prompt tokens and {wanted} answer tokens are more than the model's {model.limit}"
            raise ApiError(400, message, "context_length_exceeded", "max_tokens")
        if wanted is not None and wanted > most:
            raise ApiError(400, f"an answer has at most {most} tokens on this server", None, "max_tokens")
        sampling = body.sampling(wanted or most, logprobs)
        generation = Generation(self.engine, model, prompts, sampling, body)
        if not body.stream:
            return await generation.whole(http)
        return StreamingResponse(generation.events(), media_type="text/event-stream")


def _chat_ids(model: ServedModel, body: protocol.ChatRequest) -> list[list[int]]:
    messages = [Message("system" if each.role == "developer" else each.role, each.text) for each in body.messages]
    try:
        # Text with a special token could end a turn or fake one.
        model.template.refuse_special(messages, "")
        return [model.template.prompt_ids(messages)]
    except (RowError, InputError) as error:
        raise ApiError(400, str(error).split("\n  fix:")[0], None, "messages") from None


def _prompt_ids(model: ServedModel, body: protocol.CompletionRequest) -> list[list[int]]:
    tokenizer = model.template.tokenizer
    given: Any = body.prompt
    prompts = []
    for prompt in given if isinstance(given, list) and not isinstance(given[0], int) else [given]:
        ids = list(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else prompt
        # A tokenizer that appends an end token to every text (T5's) would end it before the answer.
        closed = isinstance(prompt, str) and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
        prompts.append(ids[:-1] if closed else ids)
    if not all(prompts):
        raise ApiError(400, "the prompt has no tokens", None, "prompt")
    if any(token >= len(tokenizer) for ids in prompts for token in ids):
        raise ApiError(400, f"the prompt has a token beyond the {len(tokenizer)} of the tokenizer", None, "prompt")
    return prompts


def application(
    engine: Engine, limits: ServerLimits | None = None, *, key: str | None = None, local: bool = True
) -> Guard:
    """Return the ASGI application over an engine, which it closes on shutdown. `local`: bound to loopback only."""
    limits = limits or ServerLimits()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close, grace=limits.grace)

    about = "The base and fine-tuned models under OpenAI's API; `model` selects one."
    errors = {status: {"model": protocol.Error} for status in ("4XX", "5XX")}
    pages: Any = {"docs_url": None, "redoc_url": None, "responses": errors}
    pages["exception_handlers"] = {HTTPException: _refused, RequestValidationError: _invalid, Exception: _fault}
    app = FastAPI(title="Luthier", version=__version__, description=about, lifespan=lifespan, **pages)
    service = Service(engine, limits)
    app.get("/health")(service.health)
    # Guard checks the key; this only describes it.
    bearer = [Depends(HTTPBearer(scheme_name="key", auto_error=False))] if key is not None else []
    v1 = APIRouter(prefix="/v1", dependencies=bearer)
    v1.get("/models")(service.models)
    v1.get("/models/{model}")(service.model)
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    stream: Any = {200: {"content": {"text/event-stream": {"schema": event}}}}
    chat, text = protocol.Answer[protocol.ChatChoice], protocol.Answer[protocol.CompletionChoice]
    v1.post("/chat/completions", response_model=chat, responses=stream)(service.chat)
    v1.post("/completions", response_model=text, responses=stream)(service.complete)
    app.include_router(v1)
    # FastAPI keeps the description that it returns, so the names of the models and the longest answer stay in it.
    description = app.openapi()
    for name in ("ChatRequest", "CompletionRequest"):
        fields = description["components"]["schemas"][name]["properties"]
        fields["model"]["enum"] = list(engine.models)
        for limited in {"max_tokens", "max_completion_tokens"} & fields.keys():
            fields[limited]["anyOf"][0]["maximum"] = limits.max_tokens
    description["paths"]["/v1/models/{model}"]["get"]["parameters"][0]["schema"]["enum"] = list(engine.models)
    return Guard(app, key=key, max_body=limits.max_body, local=local, requests=limits.requests)


async def _refused(_: Request, error: HTTPException) -> JSONResponse:
    body = error.body if isinstance(error, ApiError) else ApiError(error.status_code, error.detail).body
    return JSONResponse(body, error.status_code, error.headers)


async def _invalid(http: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    kind, message = first["type"], first["msg"]
    where = ".".join(str(part) for part in first["loc"][1:] if not isinstance(part, str) or part.isidentifier())
    if kind == "model_attributes_type" and len(first["loc"]) == 1:
        media = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json" and not media.endswith("+json"):
            return ApiError(415, "send the body as content-type: application/json").response
    if kind == "json_invalid":
        where, message = "", f"invalid JSON: {first.get('ctx', {}).get('error', '')}"
    elif kind == "string_unicode":
        message = "a string contains a lone surrogate such as \\ud800"
    code = {"extra_forbidden": "unsupported_parameter", "string_unicode": "invalid_unicode"}.get(kind)
    return ApiError(400, f"{where}: {message}" if where else message, code, where or None).response


async def _fault(http: Request, error: Exception) -> JSONResponse:
    return ApiError(500, f"internal error ({type(error).__name__}); see the server's log").response
