"""Schemas of OpenAI's API, as far as it is supported; other fields that would change the answer are rejected."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from luthier.serving.engine.requests import SamplingParams

# JSON has only one kind of number, so 1.0 is an integer too.
INTEGER = BeforeValidator(lambda given: int(given) if isinstance(given, float) and given.is_integer() else given)
AnyText = Annotated[str, Field(min_length=0)]
"""Any constraint lets pydantic also refuse lone surrogates, which no tokenizer can encode."""
Text = Annotated[str, Field(min_length=1)]
ShortText = Annotated[str, Field(min_length=1, max_length=200)]
TokenId = Annotated[int, Field(ge=0, lt=2**31), INTEGER]
Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=2**20, fail_fast=True)]
MaxTokens = Annotated[int, Field(ge=1), INTEGER]
TopLogprobs = Annotated[int, Field(ge=0, le=20), INTEGER]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
CONTENT_FORMS = "should be a text or a list of text parts"
PROMPT_FORMS = "should be a text, a list of texts, a list of token ids, or a list of such lists"


class Strict(BaseModel):
    """Part of a request. Unknown fields are an error: a misspelled one would silently have its default."""

    # strict: "5" is not a number and 1 not a boolean, as in OpenAI's own API.
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field(cls, given: Any) -> Any:
        """Keep only the first unknown field: errors for ten thousand take seconds and memory."""
        if isinstance(given, dict) and len(unknown := [key for key in given if key not in cls.model_fields]) > 1:
            return {key: value for key, value in given.items() if key in cls.model_fields or key == unknown[0]}
        return given


def _form(given: Any) -> str | None:
    """Return the tag of the form that is meant, by the type of a value and of its first element."""
    if not isinstance(given, list):
        return "a text" if isinstance(given, str) else None
    names: dict[Any, str] = {str: "a list of texts", list: "lists of tokens", dict: "a list of parts"}
    return names.get(type(given[0]) if given else str, "a list of tokens")


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: AnyText


class ChatMessage(Strict):
    """A message; `developer` is an alias of system."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[AnyText, Tag("a text")]
        | Annotated[list[TextPart], Field(min_length=1, max_length=1000, fail_fast=True), Tag("a list of parts")],
        Discriminator(_form, custom_error_type="form", custom_error_message=CONTENT_FORMS),
    ]
    name: str | None = None  # Ignored

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool = False


class GenerationBody(Strict):
    """Common fields of all requests."""

    model: ShortText
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    """0 is greedy; the default is 1, as in OpenAI's API."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), INTEGER] | None = None
    stop: ShortText | Annotated[list[ShortText], Field(max_length=8, fail_fast=True)] | None = None
    n: Annotated[int, Field(ge=1, le=8), INTEGER] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    ignore_eos: bool = False  # Continue after an end token (a field of vLLM), for speed measurements
    user: Annotated[str, Field(max_length=1000)] | None = None
    """Ignored."""

    def sampling(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """Return the sampling parameters, with OpenAI's defaults."""
        names = {"temperature", "seed", "top_p", "presence_penalty", "frequency_penalty", "ignore_eos"}
        given = {"temperature": 1.0} | self.model_dump(include=names, exclude_none=True)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(**given, stop=stop, max_tokens=max_tokens, logprobs=logprobs)


class TextFormat(Strict):
    """Plain text, the only supported format."""

    type: Literal["text"]


class ChatRequest(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2000, fail_fast=True)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: TextFormat | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ChatRequest":
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self


class CompletionRequest(GenerationBody):
    """POST /v1/completions."""

    prompt: Annotated[
        Annotated[Text, Tag("a text")]
        | Annotated[list[Text], Field(min_length=1, max_length=64, fail_fast=True), Tag("a list of texts")]
        | Annotated[Tokens, Tag("a list of tokens")]
        | Annotated[list[Tokens], Field(min_length=1, max_length=64, fail_fast=True), Tag("lists of tokens")],
        Discriminator(_form, custom_error_type="form", custom_error_message=PROMPT_FORMS),
    ]
    """A text, its token ids, or several of either."""
    max_tokens: MaxTokens | None = None  # The default is 16, as in OpenAI's API
    logprobs: TopLogprobs | None = None
    echo: Literal[False] | None = None


Body = ChatRequest | CompletionRequest


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["luthier"] = "luthier"
    root: str  # The fine-tuning method
    max_model_len: int  # Tokens of prompt and answer together


class ModelList(BaseModel):
    """Response of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorBody(BaseModel):
    """Description of an error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(BaseModel):
    """Every response other than 200."""

    error: ErrorBody


class Health(BaseModel):
    """Response of GET /health."""

    asked: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: Literal["ok", "stopping"]
    running: int
    waiting: int


class TopLogprob(BaseModel):
    """A likely token and its log probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer with its alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities of a chat answer."""

    content: list[TokenLogprob]


class Logprobs(BaseModel):
    """Log probabilities of a completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AnswerMessage(BaseModel):
    """The message of a chat answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer of a chat."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionChoice(BaseModel):
    """One completion."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


Choice = TypeVar("Choice", ChatChoice, CompletionChoice)


class Answer(BaseModel, Generic[Choice]):
    """Response of POST /v1/chat/completions and /v1/completions."""

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
