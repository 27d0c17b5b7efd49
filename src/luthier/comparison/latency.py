"""Latency of the first token and of each further one, tuned and base model measured in turns."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from luthier.pipeline.prepare import Loaded

TOKENS = 16
"""Further tokens of an answer that are timed."""
TURNS = 5
PROMPT = 128
"""Most tokens of the prompt."""


def latency(loaded: Loaded, base: nn.Module) -> dict[str, Any]:
    """Median seconds of TURNS turns and their ratio to the base's with its range; batch size 1, not merged.

    A classifier has `row` alone: one forward pass.
    """
    rows = loaded.data.validation_rows if len(loaded.data.validation_rows) else loaded.data.rows
    ids = torch.tensor([rows[0].ids[:PROMPT]], device=next(base.parameters()).device)
    works: dict[str, Callable[[Any], None]] = {}
    if loaded.data.task.model_class == "classification":
        works["row"] = lambda model: model(input_ids=ids, attention_mask=torch.ones_like(ids))
    else:
        works |= {"first": lambda model: _answer(model, ids, 1), "all": lambda model: _answer(model, ids, 1 + TOKENS)}
    subjects = {"tuned": loaded.model.eval(), "base": base.eval()}
    took: dict[str, dict[str, list[float]]] = {who: {what: [] for what in works} for who in subjects}
    with torch.inference_mode():
        for turn in range(TURNS + 1):
            for who, model in subjects.items():
                for what, work in works.items():
                    began = time.perf_counter()
                    work(model)
                    if ids.is_cuda:
                        torch.cuda.synchronize()
                    if turn:  # the first warms up
                        took[who][what].append(time.perf_counter() - began)
    for seconds in took.values():
        if "all" in seconds:
            pairs = zip(seconds.pop("all"), seconds["first"], strict=True)
            seconds["token"] = [(whole - first) / TOKENS for whole, first in pairs]
    found = {}
    for what, tuned in took["tuned"].items():
        other = took["base"][what]
        ratios = sorted(one / beside for one, beside in zip(tuned, other, strict=True))
        medians = {"seconds": median(tuned), "base": median(other), "ratio": median(ratios)}
        found[what] = medians | {"low": ratios[0], "high": ratios[-1]}
    return found


def _answer(model: Any, ids: Any, tokens: int) -> None:
    settings = GenerationConfig(do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0)
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
