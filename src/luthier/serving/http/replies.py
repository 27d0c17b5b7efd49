"""Replies in OpenAI's JSON: from the chunks of an answer to one response, or to a stream of events."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from luthier.core.strict_json import to_json
from luthier.serving.engine.models import ServedModel
from luthier.serving.engine.requests import Chunk, ScoredToken


class Reply:
    """Builds the reply to one request; `chat` selects chat completions or plain completions."""

    def __init__(self, model: ServedModel, prompt_tokens: int, *, chat: bool, logprobs: bool) -> None:
        self.tokenizer, self.prompt_tokens = model.template.tokenizer, prompt_tokens
        self.chat, self.logprobs = chat, logprobs
        name = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.frame = {"id": name, "created": int(time.time()), "model": model.name}

    def answer(self, answers: Sequence[Sequence[Chunk]]) -> dict[str, Any]:
        """Return the complete response; each answer is the list of its chunks."""
        choices = []
        for number, chunks in enumerate(answers):
            text = "".join(chunk.text for chunk in chunks)
            tokens = [token for chunk in chunks for token in chunk.logprobs]
            content = {"message": {"content": text}} if self.chat else {"text": text}
            choices.append(self._choice(number, content, chunks[-1].finish, tokens if self.logprobs else None))
        return {**self.frame, "choices": choices, "usage": self.usage([chunks[-1] for chunks in answers])}

    def usage(self, last: Sequence[Chunk]) -> dict[str, int]:
        """Return the token counts; `last` are the last chunks of the answers."""
        tokens = sum(chunk.tokens for chunk in last)
        total = self.prompt_tokens + tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens, "total_tokens": total}

    def opening(self, number: int) -> dict[str, Any]:
        """Return the first event of a chat answer in a stream."""
        return self.event([self._choice(number, {"delta": {"role": "assistant", "content": ""}}, None, None)])

    def chunk(self, number: int, chunk: Chunk) -> dict[str, Any]:
        """Return the event for a chunk of an answer."""
        delta = {"delta": {"content": chunk.text} if chunk.text else {}}
        content = delta if self.chat else {"text": chunk.text}
        tokens = chunk.logprobs if self.logprobs and chunk.logprobs else None
        return self.event([self._choice(number, content, chunk.finish, tokens)])

    def event(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self.frame, "object": kind, "choices": choices, **more}

    def _choice(
        self, number: int, content: dict[str, Any], finish: str | None, tokens: Sequence[ScoredToken] | None
    ) -> dict[str, Any]:
        logprobs = None if tokens is None else self._chat_logprobs(tokens) if self.chat else self._logprobs(tokens)
        return {"index": number, **content, "logprobs": logprobs, "finish_reason": finish}

    def _chat_logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        def one(number: int, logprob: float) -> dict[str, Any]:
            text = self._text(number)
            return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

        content = [{**one(t.token, t.logprob), "top_logprobs": [one(*pair) for pair in t.top]} for t in tokens]
        return {"content": content}

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        texts = [self._text(each.token) for each in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [each.logprob for each in tokens],
            "top_logprobs": [{self._text(number): value for number, value in each.top} for each in tokens],
            "text_offset": [sum(map(len, texts[:number])) for number in range(len(texts))],
        }

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token], skip_special_tokens=False))


def encoded(data: dict[str, Any] | str) -> bytes:
    """Return a server-sent event."""
    text = data if isinstance(data, str) else to_json(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
