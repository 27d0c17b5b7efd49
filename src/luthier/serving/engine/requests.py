"""Generation requests, their sampling parameters, and the chunks that come back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Literal

from luthier.core.errors import LuthierError

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of an answer are sampled."""

    temperature: float = 0.0  # 0 is greedy
    max_tokens: int = 256
    seed: int | None = None  # The same seed samples the same tokens from the same logits; None is a random one
    top_p: float = 1.0  # Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751)
    stop: tuple[str, ...] = ()  # Strings that end the answer; they are not part of it
    logprobs: int | None = None  # Return the log probabilities of each token and this many most likely ones
    presence_penalty: float = 0.0  # Subtracted from the logits of tokens that are in the answer already
    frequency_penalty: float = 0.0  # Subtracted once for each time that a token is in the answer
    ignore_eos: bool = False  # Continue after an end token, for speed measurements


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A generated token with its log probability and the most likely alternatives."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of an answer's text; the last chunk has a finish reason."""

    text: str
    tokens: int  # Tokens generated so far, including the end token
    logprobs: tuple[ScoredToken, ...] = ()  # Tokens since the last chunk, if log probabilities were requested
    finish: Finish | None = None
    error: str = ""


class QueueFull(LuthierError):
    """The waiting queue is full."""


@dataclass(slots=True, eq=False)
class GenerationRequest:
    """One prompt for one model."""

    model: str
    ids: list[int]
    sampling: SamplingParams
    deliver: Callable[[Chunk], None]  # Called with each chunk from the engine's thread; must not block
    cancelled: Event = field(default_factory=Event)
