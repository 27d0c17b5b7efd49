"""From logits to text: the next token of each row is sampled, and the text of an answer grows with its tokens."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.serving.engine.requests import SamplingParams, ScoredToken

NUCLEUS = 512
"""Most likely tokens to look at first: they nearly always contain the whole nucleus, so that no sort is needed."""
INCOMPLETE = "\ufffd"  # What a tokenizer decodes an incomplete character to
PENDING = 16  # Tokens after which incomplete bytes are emitted as they are: a character has at most four bytes


class Sampler:
    """Samples the tokens of one row."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.rng = random.Random(params.seed)
        self.counts: Counter[int] = Counter()
        self.penalized = bool(params.presence_penalty or params.frequency_penalty)
        self.greedy = params.temperature == 0 and not self.penalized

    def sample(self, logits: Tensor) -> int:
        """Return a token for logits [vocabulary]."""
        if self.counts and self.penalized:
            tokens = torch.tensor(list(self.counts), device=logits.device)
            times = torch.tensor(list(self.counts.values()), device=logits.device, dtype=logits.dtype)
            penalty = self.params.presence_penalty + self.params.frequency_penalty * times
            logits = logits.index_add(0, tokens, -penalty)
        if self.params.temperature == 0:
            token = int(logits.argmax())
        else:
            token = self._sample(torch.softmax(logits.double() / self.params.temperature, -1))
        self.counts[token] += 1
        return token

    def _sample(self, probs: Tensor) -> int:
        target, top_p = self.rng.random(), self.params.top_p
        if top_p >= 1:
            return _search(probs.cumsum(-1), target)
        top, tokens = probs.topk(min(NUCLEUS, len(probs)))
        sums = top.cumsum(-1)
        if float(sums[-1]) < top_p:
            top, tokens = probs.sort(descending=True)
            sums = top.cumsum(-1)
        size = int(torch.searchsorted(sums, top_p)) + 1  # including the token that reaches top_p
        return int(tokens[_search(sums[:size], target)])


def _search(sums: Tensor, target: float) -> int:
    """Return the index at which the cumulative sums pass the fraction `target` of their total."""
    return min(int(torch.searchsorted(sums, target * float(sums[-1]), right=True)), len(sums) - 1)


def sample(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Return a token for each row of logits [rows, vocabulary]."""
    best = logits.argmax(-1).tolist()
    return [s.sample(row) if not s.greedy else token for token, s, row in zip(best, samplers, logits, strict=True)]


def scored(logits: Tensor, token: int, top: int) -> ScoredToken:
    """Return the token's log probability under the model's own distribution, whatever it was sampled from."""
    logs = torch.log_softmax(logits.float(), -1)
    values, tokens = logs.topk(top)
    return ScoredToken(token, float(logs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


class Detokenizer:
    """The text of a growing answer: only whole characters are emitted, and nothing past a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, [text for text in stop if text]
        self.ids: list[int] = []
        self.context = self.decoded = 0
        """Tokens before `context` no longer affect what follows; those before `decoded` are in `text`."""
        self.text = ""
        self.emitted = 0  # Characters returned so far
        self.stopped = False

    def add(self, token: int) -> str:
        """Add a token; return the text that is now certain."""
        self.ids.append(token)
        new = self._pending()
        if new and not (new.endswith(INCOMPLETE) and len(self.ids) - self.decoded < PENDING):
            self._append(new)
        rest, held = self.text[self.emitted :], 0
        for stop in () if self.stopped else self.stop:  # a possible beginning of a stop string is held back
            fits = (size for size in range(min(len(stop) - 1, len(rest)), 0, -1) if rest.endswith(stop[:size]))
            held = max(held, next(fits, 0))
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
