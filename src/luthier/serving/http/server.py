"""OpenAI's HTTP API over the engine. Nothing of a request ever becomes a path: `model` is looked up in a dictionary."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from luthier.core.errors import InputError
from luthier.core.version import __version__
from luthier.rendering.example import Message, RowError
from luthier.serving.engine.engine import Engine
from luthier.serving.engine.models import Variant
from luthier.serving.engine.requests import Ask, Piece, QueueFull, Sampling
from luthier.serving.http.guard import Guard
from luthier.serving.http.protocol import (
    ChatAnswer,
    ChatRequest,
    CompletionAnswer,
    CompletionRequest,
    Drawn,
    Error,
    Health,
    ModelCard,
    ModelList,
)
from luthier.serving.http.replies import Answer, ChatReply, CompletionReply, Reply, event, usage_event

BODY = 2**20
"""Bytes of a request, unless another limit is given."""
RETRY = 1
"""Seconds after which a client that found the queue full may ask again."""


class Refused(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for."""

    prompt: int | None = None
    """Tokens of a prompt; None takes what the model takes."""
    tokens: int = 4096
    """Tokens of an answer."""
    body: int = BODY
    requests: int = 384
    """Requests in work, beyond which others are told to come back."""


@dataclass(slots=True)
class Answering:
    """Pieces of all answers to one request, in the order they come."""

    asks: list[Ask] = field(default_factory=list)
    pieces: asyncio.Queue[tuple[int, Piece]] = field(default_factory=asyncio.Queue)

    def cancel(self) -> None:
        for ask in self.asks:
            ask.cancel()

    async def all(self) -> AsyncIterator[tuple[int, Piece]]:
        """Until every answer has ended; a consumer that leaves stops the work."""
        open_ = len(self.asks)
        try:
            while open_:
                number, piece = await self.pieces.get()
                open_ -= piece.finish is not None
                yield number, piece
        finally:
            self.cancel()


class Service:
    """The endpoints."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self.began = int(time.time())

    def variant(self, name: str) -> Variant:
        found = self.engine.variants.get(name)
        if found is None:
            known = ", ".join(self.engine.variants)
            raise Refused(404, f"there is no model {name!r} here; there are: {known}", "model_not_found", "model")
        return found

    def card(self, variant: Variant) -> ModelCard:
        return ModelCard(
            id=variant.name, created=self.began, owned_by="luthier", root=variant.kind, max_model_len=variant.limit
        )

    async def chat(self, asked: ChatRequest, request: Request) -> Any:
        variant = self.variant(asked.model)
        most = asked.max_completion_tokens or asked.max_tokens
        ids = await asyncio.to_thread(_dialogue, variant, asked)
        room = self._room(variant, ids, most)
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        answering = self._ask(variant, [ids] * (asked.n or 1), asked, room, logprobs)
        reply = ChatReply(
            _id("chatcmpl"), int(time.time()), variant.name, variant.template.tokenizer, len(ids), logprobs is not None
        )
        return await self._answer(reply, answering, asked, request)

    async def complete(self, asked: CompletionRequest, request: Request) -> Any:
        variant = self.variant(asked.model)
        prompts = await asyncio.to_thread(_prompts, variant, asked)
        room = min(self._room(variant, ids, asked.max_tokens or 16) for ids in prompts)
        each = [ids for ids in prompts for _ in range(asked.n or 1)]
        answering = self._ask(variant, each, asked, room, asked.logprobs)
        reply = CompletionReply(
            _id("cmpl"),
            int(time.time()),
            variant.name,
            variant.template.tokenizer,
            sum(map(len, prompts)),
            asked.logprobs is not None,
        )
        return await self._answer(reply, answering, asked, request)

    def _room(self, variant: Variant, ids: Sequence[int], wanted: int | None) -> int:
        """Tokens that the answer may have; Refused where there is no room for one, or for as many as were asked for."""
        most = min(variant.limit, (self.limits.prompt or variant.limit) + 1)
        if len(ids) >= most:
            raise Refused(
                400, f"the prompt has {len(ids)} tokens, and {most - 1} are the most here", "context_length_exceeded"
            )
        room = variant.limit - len(ids)
        if wanted is not None and wanted > room:
            raise Refused(
                400,
                f"{len(ids)} tokens of prompt and {wanted} of answer are more than the model's {variant.limit}",
                "context_length_exceeded",
                "max_tokens",
            )
        if wanted is not None and wanted > self.limits.tokens:
            raise Refused(400, f"an answer has at most {self.limits.tokens} tokens here", None, "max_tokens")
        return wanted or min(room, self.limits.tokens)

    def _ask(
        self, variant: Variant, prompts: Sequence[list[int]], asked: Drawn, most: int, logprobs: int | None
    ) -> Answering:
        sampling = Sampling(
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=asked.top_p or 1.0,
            seed=asked.seed,
            most=most,
            stop=asked.stops,
            logprobs=logprobs,
            presence=asked.presence_penalty or 0.0,
            frequency=asked.frequency_penalty or 0.0,
            ignore_end=asked.ignore_eos,
        )
        loop, answering, engine = asyncio.get_running_loop(), Answering(), self.engine
        if len(prompts) > engine.most_rows + engine.most_waiting:
            raise Refused(
                400,
                f"the request asks for {len(prompts)} answers, and this server takes "
                f"{engine.most_rows + engine.most_waiting} at a time: fewer prompts, or a smaller n",
                None,
                "n",
            )

        def deliverer(number: int) -> Callable[[Piece], None]:
            def deliver(piece: Piece) -> None:
                try:
                    loop.call_soon_threadsafe(answering.pieces.put_nowait, (number, piece))
                except RuntimeError:  # the server is gone, and so is who asked
                    return

            return deliver

        for number, ids in enumerate(prompts):
            # A seed draws another answer for each choice.
            own = sampling if asked.seed is None else replace(sampling, seed=asked.seed + number)
            answering.asks.append(Ask(variant.name, ids, own, deliverer(number)))
        try:
            self.engine.submit(answering.asks)
        except QueueFull as full:
            status, code = (503, "stopping") if engine.closing else (429, "queue_full")
            raise Refused(status, str(full), code) from None
        except InputError as error:
            raise Refused(400, error.message) from None
        return answering

    async def _answer(self, reply: Reply, answering: Answering, asked: Drawn, request: Request) -> Any:
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return StreamingResponse(_events(reply, answering, usage=usage), media_type="text/event-stream")
        answers = [Answer() for _ in answering.asks]
        gone = asyncio.create_task(_gone(request, answering))
        try:
            async for number, piece in answering.all():
                answers[number].pieces.append(piece)
        finally:
            gone.cancel()
        for answer in answers:
            if answer.last.finish == "error":
                raise Refused(500, answer.last.error, "engine_error")
            if answer.last.finish == "cancelled":
                raise Refused(503, "the server is stopping", "stopping")
        return reply.whole(answers)


async def _events(reply: Reply, answering: Answering, *, usage: bool) -> AsyncIterator[bytes]:
    answers = [Answer() for _ in answering.asks]
    for number in range(len(answers)):
        if (first := reply.opening(number)) is not None:
            yield event(first)
    async for number, piece in answering.all():
        answers[number].pieces = [piece]
        if piece.finish in ("error", "cancelled"):
            message = piece.error or "the server is stopping"
            yield event({"error": {"message": message, "type": "server_error", "param": None, "code": "engine_error"}})
            answering.cancel()
            return
        yield event(reply.chunk(number, piece))
    if usage:
        yield event(usage_event(reply, answers))
    yield event("[DONE]")


async def _gone(request: Request, answering: Answering) -> None:
    """Stop the work as soon as nobody waits for it."""
    while True:
        if (await request.receive())["type"] == "http.disconnect":
            answering.cancel()
            return


def _dialogue(variant: Variant, asked: ChatRequest) -> list[int]:
    messages = [
        Message("system" if message.role == "developer" else message.role, message.text) for message in asked.messages
    ]
    try:
        # Text that spells a special token could end a turn or forge one.
        variant.template.refuse_special(messages, "")
        return variant.template.prompt_ids(messages)
    except (RowError, InputError) as error:
        raise Refused(400, str(error).split("\n  fix:")[0], None, "messages") from None


def _prompts(variant: Variant, asked: CompletionRequest) -> list[list[int]]:
    tokenizer = variant.template.tokenizer
    made = [list(tokenizer(each)["input_ids"]) if isinstance(each, str) else each for each in asked.prompts]
    # A tokenizer that closes every text (T5's) would end it before the answer begins.
    made = [
        ids[:-1] if isinstance(each, str) and ids[-1:] == [tokenizer.eos_token_id] and len(ids) > 1 else ids
        for each, ids in zip(asked.prompts, made, strict=True)
    ]
    if not all(made):
        raise Refused(400, "the prompt has no tokens", None, "prompt")
    if any(token >= len(tokenizer) for ids in made for token in ids):
        raise Refused(400, f"the prompt has a token beyond the {len(tokenizer)} of the tokenizer", None, "prompt")
    return made


def _id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def application(
    engine: Engine, *, key: str | None = None, limits: Limits | None = None, local: bool = True, patience: float = 30.0
) -> Any:
    """The ASGI application over an engine, which it closes when it stops. `local`: bound to this machine alone."""
    limits = limits or Limits()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close, patience=patience)

    app = FastAPI(
        title="Luthier",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        description="Base and tuned models under OpenAI's API; `model` says which one answers.",
    )
    _routes(app, Service(engine, limits))
    _errors(app)
    describe(app, list(engine.variants), limits.tokens, keyed=key is not None)
    return Guard(app, key=key, body=limits.body, local=local, requests=limits.requests)


def _routes(app: FastAPI, service: Service) -> None:
    said: dict[int | str, dict[str, Any]] = {
        status: {"model": Error} for status in (400, 401, 403, 404, 408, 413, 415, 429, 500, 503)
    }
    event_ = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    said[200] = {"content": {"text/event-stream": {"schema": event_}}}
    read: dict[int | str, dict[str, Any]] = {status: {"model": Error} for status in (401, 403, 404, 413)}

    @app.get("/health", responses={403: {"model": Error}, 413: {"model": Error}})
    async def health() -> Health:
        """Is it up, and what has it done."""
        engine, counts = service.engine, service.engine.counts
        return Health(
            status="stopping" if engine.closing else "ok",
            running=len(engine.jobs),
            waiting=len(engine.waiting),
            asked=counts.asked,
            finished=counts.finished,
            cancelled=counts.cancelled,
            failed=counts.failed,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.tokens,
        )

    @app.get("/v1/models", responses=read)
    async def models() -> ModelList:
        """The base and every tuned model."""
        return ModelList(data=[service.card(variant) for variant in service.engine.variants.values()])

    @app.get("/v1/models/{model}", responses=read)
    async def model(model: str) -> ModelCard:
        """One of them."""
        return service.card(service.variant(model))

    @app.post("/v1/chat/completions", response_model=ChatAnswer, responses=said)
    async def chat(asked: ChatRequest, request: Request) -> Any:
        """Answer a dialogue, in the model's own chat template."""
        return await service.chat(asked, request)

    @app.post("/v1/completions", response_model=CompletionAnswer, responses=said)
    async def complete(asked: CompletionRequest, request: Request) -> Any:
        """Go on with a text."""
        return await service.complete(asked, request)


def _errors(app: FastAPI) -> None:
    def told(status: int, message: str, code: str | None, param: str | None, headers: Any = None) -> JSONResponse:
        kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
        error = {"message": message, "type": kind, "param": param, "code": code}
        return JSONResponse({"error": error}, status, headers=headers)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        headers = {"retry-after": str(RETRY)} if error.status in (429, 503) else None
        return told(error.status, error.message, error.code, error.param, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:] if not isinstance(part, str) or part.isidentifier())
        unknown = first["type"] == "extra_forbidden"
        if first["type"] == "model_attributes_type" and len(first["loc"]) == 1 and not _is_json(request):
            return told(415, "send the body as content-type: application/json", None, None)
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        if first["type"] == "json_invalid":
            where, message = "", f"the body is no JSON: {first.get('ctx', {}).get('error', '')}"
        return told(400, message, "unsupported_parameter" if unknown else None, where or None)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return told(error.status_code, str(error.detail), None, None, error.headers)

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:
        return told(500, f"this is our fault ({type(error).__name__}); the server's log says more", None, None)


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def describe(app: FastAPI, models: Sequence[str], tokens: int, *, keyed: bool) -> None:
    """The OpenAPI description as the server behaves: models, longest answer, no 422, the key where one is needed."""
    usual = app.openapi

    def made() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = usual()
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    if keyed and path != "/health":
                        operation["security"] = [{"key": []}]
            for name in ("ChatRequest", "CompletionRequest"):
                fields = schema["components"]["schemas"][name]["properties"]
                fields["model"]["enum"] = list(models)
                for field_ in (fields[key] for key in ("max_tokens", "max_completion_tokens") if key in fields):
                    field_["anyOf"][0]["maximum"] = tokens
            schema["paths"]["/v1/models/{model}"]["get"]["parameters"][0]["schema"]["enum"] = list(models)
            if keyed:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = made  # type: ignore[method-assign]
