"""Forgetting: bits per byte on short general texts, before and after training.

The 60 texts are English prose, Chinese prose, code, arithmetic, dialogue and general facts, written for Luthier
(builtin/probe.jsonl), so in no training data older than it. They are read without a chat template. The score of all,
and of each category, is the sum of -log2 p over the tokens / the sum of bytes they stand for, so models with different
tokenizers share a scale. The first token counts only if the tokenizer adds a token of its own before every text.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.builtin import PROBE
from luthier.evaluation.records.context import EvalContext, Record, lengths_of
from luthier.evaluation.scores import counted, difference
from luthier.rendering.row import IGNORED, Row


def applies(context: EvalContext) -> str:
    """Why the texts cannot be read by this model; "" if they can."""
    if context.task.model_class == "classification":
        return "a classifier has no language-model head, so there are no bits per byte"
    if getattr(context.model.config, "is_encoder_decoder", False):
        return "an encoder-decoder does not continue plain text"
    return ""


def probe_rows(context: EvalContext) -> tuple[list[Row], list[Record]]:
    """The texts as rows, and {category, bits, bytes} of each, whose bits are still to be measured."""
    tokenizer = context.template.tokenizer
    opening = list(tokenizer("")["input_ids"])
    if opening and opening[-1] == tokenizer.eos_token_id:
        opening = opening[:-1]
    records: list[Record] = []
    rows = []
    for line in PROBE.read_text(encoding="utf-8").splitlines():
        each = json.loads(line)
        ids = [*opening, *context.template.encode_text(each["text"])][: context.max_length]
        first = "" if opening else str(tokenizer.decode(ids[:1]))
        whole = each["text"] if len(ids) < context.max_length else str(tokenizer.decode(ids[len(opening) :]))
        rows.append(Row(ids, ids if opening else [IGNORED, *ids[1:]], each["category"]))
        size = len(whole.encode()) - len(first.encode())
        records.append({"category": each["category"], "bits": 0.0, "bytes": max(1, size)})
    return rows, records


def measure_probe(context: EvalContext) -> list[Record]:
    """The records of `probe_rows`, with the bits that the model needs for each text."""
    rows, records = probe_rows(context)
    found = context.computed("losses", rows, lengths_of(rows), "texts of the probe")
    for record, (nats, _) in zip(records, found, strict=True):
        record["bits"] = nats / math.log(2)
    return records


def forgetting(base: Sequence[Record], tuned: Sequence[Record]) -> dict[str, Any]:
    """{all: {base, tuned, difference, texts}, <category>: ...}; empty if one side was not measured."""
    if not base or len(base) != len(tuned):
        return {}
    categories = [str(record["category"]) for record in tuned]
    terms = np.array([[b["bits"], t["bits"], t["bytes"]] for b, t in zip(base, tuned, strict=True)])
    found = {"all": _score(terms)}
    return found | {name: _score(terms[[each == name for each in categories]]) for name in dict.fromkeys(categories)}


def _score(terms: Any) -> dict[str, Any]:
    """Bits per byte of both sides and their difference, from [texts, (bits before, bits after, bytes)]."""
    before, after = (float(terms[:, side].sum() / terms[:, 2].sum()) for side in (0, 1))
    sums = np.concatenate([counts @ terms for counts in counted(len(terms))])
    found = difference(after - before, (sums[:, 1] - sums[:, 0]) / sums[:, 2], higher=False)
    return {"base": before, "tuned": after, "difference": found, "texts": len(terms)}
