"""From pieces of an answer to OpenAI's JSON, whole or as a stream of events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.core.strict_json import to_json
from luthier.serving.engine.requests import Piece, Scored
from luthier.serving.http.protocol import (
    ChatAnswer,
    ChatChoice,
    ChatLogprobs,
    CompletionAnswer,
    CompletionChoice,
    Logprobs,
    Said,
    TokenLogprob,
    TopLogprob,
    Usage,
)


@dataclass(slots=True)
class Answer:
    """What has come of one choice so far."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def scored(self) -> list[Scored]:
        return [each for piece in self.pieces for each in piece.scored]

    @property
    def last(self) -> Piece:
        return self.pieces[-1]


@dataclass(frozen=True, slots=True)
class Reply:
    """How one request is answered."""

    id: str
    created: int
    model: str
    tokenizer: Any
    prompt_tokens: int
    logprobs: bool

    def usage(self, answers: Iterable[Answer]) -> Usage:
        made = sum(answer.last.tokens for answer in answers)
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=made, total_tokens=self.prompt_tokens + made)

    def token(self, number: int) -> str:
        """The token's text, for log probabilities."""
        return str(self.tokenizer.decode([number], skip_special_tokens=False))

    def whole(self, answers: Sequence[Answer]) -> ChatAnswer | CompletionAnswer:
        """All answers at once."""
        raise NotImplementedError

    def chunk(self, number: int, piece: Piece) -> dict[str, Any]:
        """A piece of answer `number`."""
        raise NotImplementedError

    def opening(self, number: int) -> dict[str, Any] | None:
        """What the stream of answer `number` begins with."""
        return None


class ChatReply(Reply):
    """Of a chat."""

    __slots__ = ()

    def whole(self, answers: Sequence[Answer]) -> ChatAnswer:
        choices = [
            ChatChoice(
                index=number,
                message=Said(content=answer.text),
                finish_reason=_reason(answer.last),
                logprobs=self._logprobs(answer.scored) if self.logprobs else None,
            )
            for number, answer in enumerate(answers)
        ]
        return ChatAnswer(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=self.usage(answers)
        )

    def opening(self, number: int) -> dict[str, Any]:
        return self._event(number, {"role": "assistant", "content": ""}, None, None)

    def chunk(self, number: int, piece: Piece) -> dict[str, Any]:
        logprobs = self._logprobs(piece.scored).model_dump() if self.logprobs and piece.scored else None
        return self._event(number, {"content": piece.text} if piece.text else {}, piece.finish, logprobs)

    def _event(self, number: int, delta: dict[str, Any], finish: str | None, logprobs: Any) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**_frame(self, "chat.completion.chunk"), "choices": [choice]}

    def _logprobs(self, tokens: Sequence[Scored]) -> ChatLogprobs:
        return ChatLogprobs(
            content=[
                TokenLogprob(
                    **self._one(each.token, each.logprob),
                    top_logprobs=[TopLogprob(**self._one(*pair)) for pair in each.top],
                )
                for each in tokens
            ]
        )

    def _one(self, number: int, logprob: float) -> dict[str, Any]:
        text = self.token(number)
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


class CompletionReply(Reply):
    """Of a completion."""

    __slots__ = ()

    def whole(self, answers: Sequence[Answer]) -> CompletionAnswer:
        choices = [
            CompletionChoice(
                index=number,
                text=answer.text,
                finish_reason=_reason(answer.last),
                logprobs=self._logprobs(answer.scored) if self.logprobs else None,
            )
            for number, answer in enumerate(answers)
        ]
        return CompletionAnswer(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=self.usage(answers)
        )

    def chunk(self, number: int, piece: Piece) -> dict[str, Any]:
        logprobs = self._logprobs(piece.scored).model_dump() if self.logprobs and piece.scored else None
        choice = {"index": number, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}
        return {**_frame(self, "text_completion"), "choices": [choice]}

    def _logprobs(self, tokens: Sequence[Scored]) -> Logprobs:
        texts = [self.token(each.token) for each in tokens]
        offsets = [sum(map(len, texts[:number])) for number in range(len(texts))]
        return Logprobs(
            tokens=texts,
            token_logprobs=[each.logprob for each in tokens],
            top_logprobs=[{self.token(number): value for number, value in each.top} for each in tokens],
            text_offset=offsets,
        )


def event(data: dict[str, Any] | str) -> bytes:
    """A server-sent event."""
    text = data if isinstance(data, str) else to_json(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def usage_event(reply: Reply, answers: Iterable[Answer]) -> dict[str, Any]:
    """The last chunk of a stream that asked for it."""
    kind = "chat.completion.chunk" if isinstance(reply, ChatReply) else "text_completion"
    return {**_frame(reply, kind), "choices": [], "usage": reply.usage(answers).model_dump()}


def _frame(reply: Reply, kind: str) -> dict[str, Any]:
    return {"id": reply.id, "object": kind, "created": reply.created, "model": reply.model}


def _reason(piece: Piece) -> Any:
    return piece.finish
