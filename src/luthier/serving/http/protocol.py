"""OpenAI's API as far as it is served here: what a request may hold, and what comes back.

Fields that would change the answer and are not served are refused, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]


def _whole(given: Any) -> Any:
    """JSON has one kind of number: 1.0 is a whole one."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


WHOLE = BeforeValidator(_whole)


def _wholes(given: Any) -> Any:
    return [_whole(each) for each in given] if isinstance(given, list) else given


Tokens = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]],
    Field(min_length=1, max_length=2**20, fail_fast=True),
    BeforeValidator(_wholes),
]
Text = Annotated[str, StringConstraints(min_length=1)]


class Asked(BaseModel):
    """A request. Unknown fields are an error: a misspelt one would else be a default in silence."""

    # strict: "5" is no number and 1 no truth, as in OpenAI's own API.
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field(cls, given: Any) -> Any:
        """An error for the first unknown field; one for each of ten thousand takes seconds and memory."""
        if isinstance(given, dict) and len(unknown := [key for key in given if key not in cls.model_fields]) > 1:
            return {key: value for key, value in given.items() if key in cls.model_fields or key == unknown[0]}
        return given


def _form(given: Any) -> str | None:
    """Which of the forms of a field is meant, by its type and that of its first element."""
    if isinstance(given, str):
        return "a text"
    if not isinstance(given, list):
        return None
    first = given[0] if given else ""
    if isinstance(first, list):
        return "lists of tokens"
    return "a list of texts" if isinstance(first, str) else "a list of tokens"


def _form_of_content(given: Any) -> str | None:
    return "a text" if isinstance(given, str) else "a list of parts" if isinstance(given, list) else None


class TextPart(Asked):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Asked):
    """A turn. `developer` is another word for system."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("a text")]
        | Annotated[list[TextPart], Field(min_length=1, max_length=1000, fail_fast=True), Tag("a list of parts")],
        Discriminator(
            _form_of_content, custom_error_type="form", custom_error_message="should be a text or a list of text parts"
        ),
    ]
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
    stop: Stop | Annotated[list[Stop], Field(max_length=8, fail_fast=True)] | None = None
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

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2000, fail_fast=True)]
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

    prompt: Annotated[
        Annotated[Text, Tag("a text")]
        | Annotated[list[Text], Field(min_length=1, max_length=64, fail_fast=True), Tag("a list of texts")]
        | Annotated[Tokens, Tag("a list of tokens")]
        | Annotated[list[Tokens], Field(min_length=1, max_length=64, fail_fast=True), Tag("lists of tokens")],
        Discriminator(
            _form,
            custom_error_type="form",
            custom_error_message="should be a text, a list of texts, a list of token ids, or a list of such lists",
        ),
    ]
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
