"""OpenAI's HTTP API over the engine. No request field becomes a path: `model` is looked up in a dictionary."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from luthier.core.errors import InputError
from luthier.core.version import __version__
from luthier.rendering.example import Message, RowError
from luthier.serving.engine.engine import Engine
from luthier.serving.engine.models import ServedModel
from luthier.serving.engine.requests import Chunk, GenerationRequest, QueueFull, SamplingParams
from luthier.serving.http.guard import ApiError, Guard
from luthier.serving.http.protocol import (
    ChatAnswer,
    ChatRequest,
    CompletionAnswer,
    CompletionRequest,
    Error,
    GenerationBody,
    Health,
    ModelCard,
    ModelList,
)
from luthier.serving.http.replies import Reply, encoded
from luthier.serving.http.settings import ServerLimits

STOPPING = "the server is stopping"


class Generation:
    """The answers to one HTTP request: submits them to the engine and receives their chunks."""

    def __init__(
        self, engine: Engine, model: ServedModel, prompts: Sequence[list[int]], sampling: SamplingParams
    ) -> None:
        """ApiError if the engine does not accept the request."""
        capacity = engine.max_rows + engine.max_waiting
        if len(prompts) > capacity:
            message = f"the request asks for {len(prompts)} answers, and this server takes {capacity} at a time"
            raise ApiError(400, f"{message}: send fewer prompts, or a smaller n", None, "n")
        self.loop = asyncio.get_running_loop()
        self.chunks: asyncio.Queue[tuple[int, Chunk]] = asyncio.Queue()
        self.requests = []
        for number, ids in enumerate(prompts):
            # With a seed, each choice has another seed.
            own = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + number)
            self.requests.append(GenerationRequest(model.name, ids, own, partial(self._deliver, number)))
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

    async def whole(self, http: Request) -> list[list[Chunk]]:
        """Return the chunks of each answer. If the client disconnects, generation stops."""

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
        for last in (chunks[-1] for chunks in answers):
            if last.finish == "error":
                raise ApiError(500, last.error, "engine_error")
            if last.finish == "cancelled":
                raise ApiError(503, STOPPING, "stopping", retry_after="1")
        return answers

    async def events(self, reply: Reply, *, usage: bool) -> AsyncIterator[bytes]:
        """Yield the server-sent events of a stream."""
        last: dict[int, Chunk] = {}
        if reply.chat:
            for number in range(len(self.requests)):
                yield encoded(reply.opening(number))
        async for number, chunk in self:
            if chunk.finish in ("error", "cancelled"):
                yield encoded(ApiError(500, chunk.error or STOPPING, "engine_error").body)
                self.cancel()
                return
            last[number] = chunk
            yield encoded(reply.chunk(number, chunk))
        if usage:
            yield encoded(reply.event([], usage=reply.usage(list(last.values()))))
        yield encoded("[DONE]")


class Service:
    """The endpoints. Their docstrings are part of the OpenAPI description."""

    def __init__(self, engine: Engine, limits: ServerLimits) -> None:
        self.engine, self.limits = engine, limits
        self.started = int(time.time())

    async def health(self) -> Health:
        """Return the state of the server and its counts."""
        status = "stopping" if self.engine.closing else "ok"
        running, waiting = len(self.engine.running), len(self.engine.waiting)
        return Health(status=status, running=running, waiting=waiting, **asdict(self.engine.counts))

    async def models(self) -> ModelList:
        """List the base and all fine-tuned models."""
        return ModelList(data=[await self.model(name) for name in self.engine.models])

    async def model(self, model: str) -> ModelCard:
        """Describe one model."""
        found = self._find(model)
        limit = found.limit
        return ModelCard(id=model, created=self.started, owned_by="luthier", root=found.kind, max_model_len=limit)

    async def chat(self, body: ChatRequest, http: Request) -> Any:
        """Answer a conversation, in the model's own chat template."""
        model = self._find(body.model)
        ids = await asyncio.to_thread(_chat_ids, model, body)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        max_tokens = self._max_tokens(model, ids, body.max_completion_tokens or body.max_tokens)
        return await self._answer(model, [ids], body.sampling(max_tokens, logprobs), body, http)

    async def complete(self, body: CompletionRequest, http: Request) -> Any:
        """Continue a text."""
        model = self._find(body.model)
        prompts = await asyncio.to_thread(_prompt_ids, model, body)
        max_tokens = min(self._max_tokens(model, ids, body.max_tokens or 16) for ids in prompts)
        return await self._answer(model, prompts, body.sampling(max_tokens, body.logprobs), body, http)

    def _find(self, name: str) -> ServedModel:
        if name not in self.engine.models:
            known = ", ".join(self.engine.models)
            raise ApiError(404, f"there is no model {name!r} here; there are: {known}", "model_not_found", "model")
        return self.engine.models[name]

    def _max_tokens(self, model: ServedModel, ids: Sequence[int], wanted: int | None) -> int:
        """Return how many tokens the answer may have; ApiError if none, or if fewer than requested."""
        longest = min(model.limit - 1, self.limits.max_prompt or model.limit)
        if len(ids) > longest:
            message = f"the prompt has {len(ids)} tokens, and the limit is {longest}"
            raise ApiError(400, message, "context_length_exceeded")
        room = model.limit - len(ids)
        if wanted is not None and wanted > room:
            message = f"{len(ids)} prompt tokens and {wanted} answer tokens are more than the model's {model.limit}"
            raise ApiError(400, message, "context_length_exceeded", "max_tokens")
        if wanted is not None and wanted > self.limits.max_tokens:
            message = f"an answer has at most {self.limits.max_tokens} tokens on this server"
            raise ApiError(400, message, None, "max_tokens")
        return wanted or min(room, self.limits.max_tokens)

    async def _answer(
        self,
        model: ServedModel,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        body: GenerationBody,
        http: Request,
    ) -> Any:
        repeated = [ids for ids in prompts for _ in range(body.n or 1)]
        generation = Generation(self.engine, model, repeated, sampling)
        is_chat = isinstance(body, ChatRequest)
        reply = Reply(model, sum(map(len, prompts)), chat=is_chat, logprobs=sampling.logprobs is not None)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(generation.events(reply, usage=usage), media_type="text/event-stream")
        return reply.answer(await generation.whole(http))


def _chat_ids(model: ServedModel, body: ChatRequest) -> list[int]:
    messages = [Message("system" if each.role == "developer" else each.role, each.text) for each in body.messages]
    try:
        # Text with a special token could end a turn or fake one.
        model.template.refuse_special(messages, "")
        return model.template.prompt_ids(messages)
    except (RowError, InputError) as error:
        raise ApiError(400, str(error).split("\n  fix:")[0], None, "messages") from None


def _prompt_ids(model: ServedModel, body: CompletionRequest) -> list[list[int]]:
    tokenizer = model.template.tokenizer
    prompts = []
    for prompt in body.prompts:
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

    app = FastAPI(
        title="Luthier",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        description="The base and fine-tuned models under OpenAI's API; `model` selects one.",
    )
    _routes(app, Service(engine, limits))
    _handle_errors(app)
    _describe(app, list(engine.models), limits.max_tokens, keyed=key is not None)
    return Guard(app, key=key, max_body=limits.max_body, local=local, requests=limits.requests)


def _routes(app: FastAPI, service: Service) -> None:
    def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: {"model": Error} for status in statuses}

    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    generated = errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503)
    generated[200] = {"content": {"text/event-stream": {"schema": event}}}

    listed = errors(401, 403, 404, 413)
    app.get("/health", responses=errors(403, 413))(service.health)
    app.get("/v1/models", responses=listed)(service.models)
    app.get("/v1/models/{model}", responses=listed)(service.model)
    app.post("/v1/chat/completions", response_model=ChatAnswer, responses=generated)(service.chat)
    app.post("/v1/completions", response_model=CompletionAnswer, responses=generated)(service.complete)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:] if not isinstance(part, str) or part.isidentifier())
        unknown = first["type"] == "extra_forbidden"
        if first["type"] == "model_attributes_type" and len(first["loc"]) == 1:
            kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json" and not kind.endswith("+json"):
                return await refused(http, ApiError(415, "send the body as content-type: application/json"))
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        if first["type"] == "json_invalid":
            where, message = "", f"invalid JSON: {first.get('ctx', {}).get('error', '')}"
        return await refused(http, ApiError(400, message, "unsupported_parameter" if unknown else None, where or None))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(ApiError(error.status_code, str(error.detail)).body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fault(http: Request, error: Exception) -> JSONResponse:
        return await refused(http, ApiError(500, f"internal error ({type(error).__name__}); see the server's log"))


def _describe(app: FastAPI, models: Sequence[str], max_tokens: int, *, keyed: bool) -> None:
    """Adapt the OpenAPI description to the server: models, longest answer, no 422, and the key if one is needed."""
    default = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = default()
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    if keyed and path != "/health":
                        operation["security"] = [{"key": []}]
            for name in ("ChatRequest", "CompletionRequest"):
                fields = schema["components"]["schemas"][name]["properties"]
                fields["model"]["enum"] = list(models)
                for key in {"max_tokens", "max_completion_tokens"} & fields.keys():
                    fields[key]["anyOf"][0]["maximum"] = max_tokens
            schema["paths"]["/v1/models/{model}"]["get"]["parameters"][0]["schema"]["enum"] = list(models)
            if keyed:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
