"""Tokens to text as they come: whole characters only, and never more than a stop text allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"
"""What a tokenizer writes for bytes that are no whole character yet."""

PENDING = 16
"""Tokens after which unfinished bytes are taken for rubbish: a character has at most four."""


class Text:
    """The text of a growing answer."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, [text for text in stop if text]
        self.ids: list[int] = []
        self.begun = self.told = 0
        """Tokens before `begun` no longer bear on what follows; those before `told` are in `whole`."""
        self.whole = ""
        self.given = 0
        """Characters that were handed out."""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token; returns the text that is sure now."""
        self.ids.append(token)
        # A token's text may depend on the one before it (spaces), so the new one is the difference of two decodings.
        before = self._decode(self.ids[self.begun : self.told])
        after = self._decode(self.ids[self.begun :])
        waits = after.endswith(UNFINISHED) and len(self.ids) - self.told < PENDING
        if len(after) > len(before) and not waits:
            self.whole += after[len(before) :]
            self.begun, self.told = self.told, len(self.ids)
        return self._sure()

    def end(self) -> str:
        """All that is left."""
        if not self.stopped:
            rest = self._decode(self.ids[self.begun :])[len(self._decode(self.ids[self.begun : self.told])) :]
            self.whole += rest
            self.begun, self.told = self.told, len(self.ids)
            self._cut()
        text, self.given = self.whole[self.given :], max(self.given, len(self.whole))
        return text

    def _sure(self) -> str:
        self._cut()
        last = len(self.whole)
        if not self.stopped:
            # The beginning of a stop text is held back until it is known how it goes on.
            last -= max((_begun(self.whole[self.given :], text) for text in self.stop), default=0)
        text, self.given = self.whole[self.given : last], max(self.given, last)
        return text

    def _cut(self) -> None:
        places = [place for text in self.stop if (place := self.whole.find(text, self._from(text))) >= 0]
        if places:
            self.whole, self.stopped = self.whole[: min(places)], True

    def _from(self, text: str) -> int:
        return max(0, self.given - len(text))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _begun(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
