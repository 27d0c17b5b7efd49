"""From logits to the next token of each row."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from luthier.serving.engine.requests import Sampling, Scored

if TYPE_CHECKING:
    from torch import Tensor

NUCLEUS = 512
"""Likeliest tokens that are looked at first: nearly always they have the whole of top_p, and no sort is needed."""


class Drawer:
    """Draws the tokens of one row."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.chance = random.Random(sampling.seed)
        self.said: Counter[int] = Counter()
        self.plain = sampling.temperature == 0 and not sampling.presence and not sampling.frequency

    def draw(self, logits: Tensor) -> int:
        """Token for logits [vocabulary]."""
        if self.said and (self.sampling.presence or self.sampling.frequency):
            tokens = torch.tensor(list(self.said), device=logits.device)
            times = torch.tensor(list(self.said.values()), device=logits.device, dtype=logits.dtype)
            logits = logits.index_add(0, tokens, -(self.sampling.presence + self.sampling.frequency * times))
        if self.sampling.temperature == 0:
            token = int(logits.argmax())
        else:
            token = self._chosen(torch.softmax(logits.double() / self.sampling.temperature, -1))
        self.said[token] += 1
        return token

    def _chosen(self, shares: Tensor) -> int:
        aim, most = self.chance.random(), self.sampling.top_p
        if most >= 1:
            return _at(shares.cumsum(-1), aim)
        top, tokens = shares.topk(min(NUCLEUS, len(shares)))
        sums = top.cumsum(-1)
        if float(sums[-1]) < most:
            top, tokens = shares.sort(descending=True)
            sums = top.cumsum(-1)
        # The token that reaches top_p belongs to the nucleus: it holds at least that much.
        kept = int(torch.searchsorted(sums, most)) + 1
        return int(tokens[_at(sums[:kept], aim)])


def _at(sums: Tensor, aim: float) -> int:
    """Place at which the running sums pass `aim` of their whole."""
    return min(int(torch.searchsorted(sums, aim * float(sums[-1]), right=True)), len(sums) - 1)


def draw(logits: Tensor, drawers: Sequence[Drawer]) -> list[int]:
    """A token for each row of logits [rows, vocabulary]."""
    likeliest = logits.argmax(-1).tolist()
    return [
        token if drawer.plain else drawer.draw(row)
        for token, drawer, row in zip(likeliest, drawers, logits, strict=True)
    ]


def scored(logits: Tensor, token: int, top: int) -> Scored:
    """The token's log probability in the model's own distribution, whatever it was drawn from."""
    logs = torch.log_softmax(logits.float(), -1)
    values, tokens = logs.topk(top) if top else (logs[:0], logs[:0])
    best = tuple((int(number), float(value)) for number, value in zip(tokens.tolist(), values.tolist(), strict=True))
    return Scored(token, float(logs[token]), best)
