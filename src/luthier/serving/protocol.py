"""OpenAI's API as far as it is served here: what a request may hold, and what comes back.

Fields that would change the answer and are not served are refused, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]


def _whole(given: Any) -> Any:
    """JSON has one kind of number: 1.0 is a whole one."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


WHOLE = BeforeValidator(_whole)
Token = Annotated[int, Field(ge=0, lt=2**31), WHOLE]


class Asked(BaseModel):
    """A request. Unknown fields are an error: a misspelt one would else be a default in silence."""

    # strict: "5" is no number and 1 no truth, as in OpenAI's own API.
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class TextPart(Asked):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Asked):
    """A turn. `developer` is another word for system."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    """Not shown to the model."""

    @property
    def text(self) -> str:
        """All of its content."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Asked):
    """What a stream ends with."""

    include_usage: bool = False


class Drawn(Asked):
    """Fields that both kinds of request have."""

    model: Name
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    """0 takes the likeliest token; 1 if nothing is said, as in OpenAI's API."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=8)] | None = None
    n: Annotated[int, Field(ge=1, le=8), WHOLE] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    ignore_eos: bool = False
    """Go on behind an end token (vLLM's field), to measure speed."""
    user: Annotated[str, StringConstraints(max_length=1000)] | None = None
    """Not looked at."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextFormat(Asked):
    """Plain text: no other format is served."""

    type: Literal["text"]


class ChatRequest(Drawn):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2000)]
    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    response_format: TextFormat | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> ChatRequest:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self


class CompletionRequest(Drawn):
    """POST /v1/completions."""

    prompt: (
        Annotated[str, StringConstraints(min_length=1)]
        | Annotated[list[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1, max_length=64)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=64)]
    )
    """A text, its tokens, or several of either."""
    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    """16 if nothing is said, as in OpenAI's API."""
    logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    echo: Literal[False] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt."""
        given: Any = self.prompt
        return given if isinstance(given, list) and not isinstance(given[0], int) else [given]


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ModelCard(BaseModel):
    """One of the models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    """How the base was tuned: the method."""
    max_model_len: int
    """Tokens of prompt and answer together."""


class ModelList(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(BaseModel):
    """Every answer that is not 200."""

    error: ErrorBody


class Health(BaseModel):
    """GET /health."""

    status: Literal["ok", "stopping"]
    running: int
    waiting: int
    asked: int
    finished: int
    cancelled: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


class TopLogprob(BaseModel):
    """A token that might have stood there."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities of a chat's answer."""

    content: list[TokenLogprob]


class Said(BaseModel):
    """The answer's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: Said
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(BaseModel):
    """Of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Logprobs(BaseModel):
    """Log probabilities of a completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One completion."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionAnswer(BaseModel):
    """Of POST /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
