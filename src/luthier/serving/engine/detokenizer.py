"""Incremental detokenization: only whole characters are emitted, and nothing past a stop string."""

from collections.abc import Sequence
from typing import Any

INCOMPLETE = "\ufffd"
"""What a tokenizer decodes an incomplete character to."""
PENDING = 16
"""Tokens after which incomplete bytes are emitted as they are: a character has at most four bytes."""


class Detokenizer:
    """The text of a growing answer."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, [text for text in stop if text]
        self.ids: list[int] = []
        self.context = self.decoded = 0
        """Tokens before `context` no longer affect what follows; those before `decoded` are in `text`."""
        self.text = ""
        self.emitted = 0
        """Characters returned so far."""
        self.stopped = False

    def add(self, token: int) -> str:
        """Add a token; return the text that is now certain."""
        self.ids.append(token)
        new = self._pending()
        if new and not (new.endswith(INCOMPLETE) and len(self.ids) - self.decoded < PENDING):
            self._append(new)
        held = 0
        if not self.stopped:  # a possible beginning of a stop string is held back
            held = max((_overlap(self.text[self.emitted :], stop) for stop in self.stop), default=0)
        return self._emit(len(self.text) - held)

    def finish(self) -> str:
        """Return all remaining text."""
        if not self.stopped:
            self._append(self._pending())
        return self._emit(len(self.text))

    def _pending(self) -> str:
        # A token's text may depend on the one before it (spaces), so new text is the difference of two decodings.
        before = self._decode(self.ids[self.context : self.decoded])
        return self._decode(self.ids[self.context :])[len(before) :]

    def _append(self, new: str) -> None:
        self.text += new
        self.context, self.decoded = self.decoded, len(self.ids)
        found = [self.text.find(stop, max(0, self.emitted - len(stop))) for stop in self.stop]
        if any(at >= 0 for at in found):
            self.text, self.stopped = self.text[: min(at for at in found if at >= 0)], True

    def _emit(self, end: int) -> str:
        text, self.emitted = self.text[self.emitted : end], max(self.emitted, end)
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a prefix of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
