"""A classifier in chat: each message gets the probabilities of its labels."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from luthier.models.load import load_model, load_tokenizer, locate, row_limit
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example, Message
from luthier.serving.engine.requests import SamplingParams
from luthier.serving.engine.sources import ModelSource
from luthier.tasks.base import encode_texts

SHOWN = 10
"""Labels in an answer, the most likely first."""


class Classifier:
    """A model with a classification head; one with a single output predicts a number."""

    def __init__(self, source: ModelSource) -> None:
        """Load it. InputError if another base is in its place, or the adapter does not fit."""
        place = locate(source.base)
        source.check(place)
        assert source.labels is not None
        self.labels, tokenizer = source.labels(place), load_tokenizer(source.base, str(source.tokenizer))
        self.limit, self.template = row_limit(source.base, place, tokenizer, None, 0), Template(tokenizer)
        base = load_model(source.base, place, labels=self.labels, tokenizer=tokenizer)
        self.model: Any = (source.load(base) if source.load is not None else base).eval()

    def stream(self, messages: Sequence[Message], _: SamplingParams) -> Iterator[str]:
        """Classify the last message, by itself as in training; RowError if it is empty."""
        row = encode_texts(Example(text=messages[-1].content), self.template, self.limit, "truncate_answer", 0)
        ids = torch.tensor([row.ids], device=next(self.model.parameters()).device)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
        if len(self.labels) == 1:
            yield f"{logits.item():.4g}"
            return
        shares, order = logits.softmax(-1).sort(descending=True)
        pairs = zip(order.tolist()[:SHOWN], shares.tolist(), strict=False)
        yield ", ".join(f"{self.labels[number]} {share:.1%}" for number, share in pairs)
