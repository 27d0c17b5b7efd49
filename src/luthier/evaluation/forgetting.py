"""Forgetting: bits per byte on short general texts, before and after training.

A model that learns one thing may lose others. Luthier brings 120 texts, 20 each of English prose, Chinese prose, code,
arithmetic, dialogue and general facts (builtin/probe.jsonl, written for it, so in no training data older than it).
A text is read as plain text, without a chat template; its score is the sum of -log2 p over its tokens divided by the
bytes they stand for, so models with different tokenizers share a scale. The first token counts only where the tokenizer
opens every text with a token of its own. Of all texts, and of each category: sum of bits / sum of bytes, with the
paired bootstrap's interval over texts. More bits per byte are worse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from luthier.builtin import PROBE
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.scores import difference, resamples
from luthier.rendering.chat_template import IGNORED
from luthier.rendering.row import Row


def applies(subject: EvalContext) -> str:
    """Why the probe cannot be read by this model; "" where it can."""
    if subject.task.model_class == "classification":
        return "a classifier has no language-model head, so there are no bits per byte"
    if getattr(subject.model.config, "is_encoder_decoder", False):
        return "an encoder-decoder does not continue plain text"
    return ""


def probe() -> list[dict[str, str]]:
    """The texts: category and text."""
    return [json.loads(line) for line in PROBE.read_text(encoding="utf-8").splitlines()]


def measure(subject: EvalContext) -> list[Record]:
    """{category, bits, bytes} of each text."""
    import torch

    tokenizer = subject.template.tokenizer
    opening = list(tokenizer("")["input_ids"])
    if opening and opening[-1] == tokenizer.eos_token_id:
        opening = opening[:-1]
    records: list[Record] = []
    rows = []
    for each in probe():
        ids = [*opening, *subject.template.encode_text(each["text"])][: subject.max_length]
        first = "" if opening else str(tokenizer.decode(ids[:1]))
        read = str(tokenizer.decode(ids[len(opening) :]))
        whole = each["text"] if len(ids) < subject.max_length else read
        rows.append(Row(ids, ids if opening else [IGNORED, *ids[1:]], each["category"]))
        size = len(whole.encode()) - len(first.encode())
        records.append({"category": each["category"], "bits": 0.0, "bytes": max(1, size)})
    subject.model.eval()
    with torch.inference_mode():
        for numbers, batch in subject.batches(rows, "texts of the probe"):
            for number, nats in zip(numbers, subject.task.losses(subject.model, batch)[0].tolist(), strict=True):
                records[number]["bits"] = nats / math.log(2)
    return records


def forgetting(base: Sequence[Record], tuned: Sequence[Record]) -> dict[str, Any]:
    """{all: {base, tuned, difference}, <category>: ...}; empty where one side was not measured."""
    if not base or len(base) != len(tuned):
        return {}
    names = dict.fromkeys(str(record["category"]) for record in tuned)
    groups = {"all": range(len(tuned))} | {
        name: [i for i, record in enumerate(tuned) if record["category"] == name] for name in names
    }
    return {name: _score([base[i] for i in places], [tuned[i] for i in places]) for name, places in groups.items()}


def _score(base: Sequence[Record], tuned: Sequence[Record]) -> dict[str, Any]:
    import numpy as np

    terms = np.array([[b["bits"], t["bits"], t["bytes"]] for b, t in zip(base, tuned, strict=True)])
    before, after = (terms[:, side].sum() / terms[:, 2].sum() for side in (0, 1))
    drawn = []
    for counts in resamples(len(terms)):
        sums = counts @ terms
        drawn.append((sums[:, 1] - sums[:, 0]) / sums[:, 2])
    found = difference(float(after - before), np.concatenate(drawn), higher=False)
    return {"base": float(before), "tuned": float(after), "difference": found, "texts": len(terms)}
