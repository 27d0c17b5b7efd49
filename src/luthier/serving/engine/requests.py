"""What is asked of a model, and what comes back piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Literal

from luthier.core.errors import LuthierError

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 0.0
    """0 takes the likeliest."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability (Holtzman et al. 2020, arXiv 1904.09751)."""
    seed: int | None = None
    """The same seed draws the same tokens from the same logits; None draws anew each time."""
    most: int = 256
    """Longest answer in tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    logprobs: int | None = None
    """With each token its log probability and those of so many likeliest; None gives none."""
    presence: float = 0.0
    """Taken from the logits of tokens that the answer has already (OpenAI's presence_penalty)."""
    frequency: float = 0.0
    """Taken for each time that the answer has them (frequency_penalty)."""
    ignore_end: bool = False
    """Go on behind an end token, for measurements of speed."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A token of the answer with its log probability, and the likeliest in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of the answer; the last piece says why it ends."""

    text: str
    tokens: int
    """Tokens made so far, with the end token."""
    scored: tuple[Scored, ...] = ()
    """Of the tokens since the last piece, where log probabilities were asked for."""
    finish: Finish | None = None
    error: str = ""


class QueueFull(LuthierError):
    """More questions wait than are allowed to."""


@dataclass(slots=True, eq=False)
class Ask:
    """One question to one model."""

    model: str
    ids: list[int]
    sampling: Sampling
    deliver: Callable[[Piece], None]
    """Called from the engine's thread with each piece; must not wait."""
    cancelled: Event = field(default_factory=Event)

    def cancel(self) -> None:
        """Stop the work; the last piece says so."""
        self.cancelled.set()
