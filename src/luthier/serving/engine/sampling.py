"""Sampling: from logits to the next token of each row."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from luthier.serving.engine.requests import SamplingParams, ScoredToken

if TYPE_CHECKING:
    from torch import Tensor

NUCLEUS = 512
"""Most likely tokens to look at first: they nearly always contain the whole nucleus, so that no sort is needed."""


class Sampler:
    """Samples the tokens of one row."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.rng = random.Random(params.seed)
        self.counts: Counter[int] = Counter()
        self.penalized = bool(params.presence_penalty or params.frequency_penalty)
        self.greedy = params.temperature == 0 and not self.penalized

    def sample(self, logits: "Tensor") -> int:
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

    def _sample(self, probs: "Tensor") -> int:
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


def _search(sums: "Tensor", target: float) -> int:
    """Return the index at which the cumulative sums pass the fraction `target` of their total."""
    return min(int(torch.searchsorted(sums, target * float(sums[-1]), right=True)), len(sums) - 1)


def sample(logits: "Tensor", samplers: Sequence[Sampler]) -> list[int]:
    """Return a token for each row of logits [rows, vocabulary]."""
    best = logits.argmax(-1).tolist()
    return [s.sample(row) if not s.greedy else token for token, s, row in zip(best, samplers, logits, strict=True)]


def scored(logits: "Tensor", token: int, top: int) -> ScoredToken:
    """Return the token's log probability under the model's own distribution, whatever it was sampled from."""
    logs = torch.log_softmax(logits.float(), -1)
    values, tokens = logs.topk(top) if top else (logs[:0], logs[:0])
    best = tuple((int(number), float(value)) for number, value in zip(tokens.tolist(), values.tolist(), strict=True))
    return ScoredToken(token, float(logs[token]), best)
