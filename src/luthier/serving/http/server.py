"""OpenAI's HTTP API over the engine. No request field becomes a path: `model` is looked up in a dictionary."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from luthier.core.errors import InputError
from luthier.core.version import __version__
from luthier.rendering.example import Message, RowError
from luthier.serving.engine.engine import Engine
from luthier.serving.engine.models import ServedModel
from luthier.serving.http.generation import Generation
from luthier.serving.http.guard import ApiError, Guard
from luthier.serving.http.protocol import (
    Answer,
    ChatChoice,
    ChatRequest,
    CompletionChoice,
    CompletionRequest,
    Error,
    GenerationBody,
    Health,
    ModelCard,
    ModelList,
)
from luthier.serving.http.settings import ServerLimits


class Service:
    """The endpoints. Their docstrings are part of the OpenAPI description."""

    def __init__(self, engine: Engine, limits: ServerLimits) -> None:
        self.engine, self.limits = engine, limits
        self.started = int(time.time())

    async def health(self) -> Health:
        """Return the state of the server and its counts."""
        engine = self.engine
        status: Any = "stopping" if engine.closing else "ok"
        return Health(status=status, running=len(engine.running), waiting=len(engine.waiting), **asdict(engine.counts))

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
        return await self._answer(model, [ids], body.max_completion_tokens or body.max_tokens, logprobs, body, http)

    async def complete(self, body: CompletionRequest, http: Request) -> Any:
        """Continue a text."""
        model = self._find(body.model)
        prompts = await asyncio.to_thread(_prompt_ids, model, body)
        return await self._answer(model, prompts, body.max_tokens or 16, body.logprobs, body, http)

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
        wanted: int | None,
        logprobs: int | None,
        body: GenerationBody,
        http: Request,
    ) -> Any:
        sampling = body.sampling(min(self._max_tokens(model, ids, wanted) for ids in prompts), logprobs)
        chat = isinstance(body, ChatRequest)
        generation = Generation(self.engine, model, prompts, body.n or 1, sampling, chat)
        if not body.stream:
            return await generation.whole(http)
        usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(generation.events(usage=usage), media_type="text/event-stream")


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
        responses={"4XX": {"model": Error}, "5XX": {"model": Error}},
    )
    _handle_errors(app)
    service = Service(engine, limits)
    app.get("/health")(service.health)
    # Guard checks the key; this only describes it.
    bearer = [Depends(HTTPBearer(scheme_name="key", auto_error=False))] if key is not None else []
    v1 = APIRouter(prefix="/v1", dependencies=bearer)
    v1.get("/models")(service.models)
    v1.get("/models/{model}")(service.model)
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    stream: Any = {200: {"content": {"text/event-stream": {"schema": event}}}}
    v1.post("/chat/completions", response_model=Answer[ChatChoice], responses=stream)(service.chat)
    v1.post("/completions", response_model=Answer[CompletionChoice], responses=stream)(service.complete)
    app.include_router(v1)
    # FastAPI keeps the description that it returns, so the names of the models and the longest answer stay in it.
    description = app.openapi()
    for name in ("ChatRequest", "CompletionRequest"):
        fields = description["components"]["schemas"][name]["properties"]
        fields["model"]["enum"] = list(engine.models)
        for limited in {"max_tokens", "max_completion_tokens"} & fields.keys():
            fields[limited]["anyOf"][0]["maximum"] = limits.max_tokens
    described = description["paths"]["/v1/models/{model}"]["get"]["parameters"][0]
    described["schema"]["enum"] = list(engine.models)
    return Guard(app, key=key, max_body=limits.max_body, local=local, requests=limits.requests)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return error.response

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Request, error: RequestValidationError) -> JSONResponse:
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

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(ApiError(error.status_code, str(error.detail)).body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fault(http: Request, error: Exception) -> JSONResponse:
        return ApiError(500, f"internal error ({type(error).__name__}); see the server's log").response
