"""What answering costs: time to the first token and of each further one, tuned beside the base, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from luthier.pipeline.prepare import Loaded

if TYPE_CHECKING:
    from torch import nn

TOKENS = 16
"""Further tokens of an answer that are timed."""
TURNS = 5
PROMPT = 128
"""Most tokens of the prompt."""


def latency(loaded: Loaded, base: nn.Module) -> dict[str, Any]:
    """Seconds, median of TURNS, and the ratio to the base's with its range; one row at a time, not merged.

    A classifier has `row` alone: one forward pass.
    """
    import torch

    rows = loaded.data.validation_rows if len(loaded.data.validation_rows) else loaded.data.rows
    ids = torch.tensor([rows[0].ids[:PROMPT]], device=next(base.parameters()).device)
    subjects = {"tuned": loaded.model.eval(), "base": base.eval()}
    works: dict[str, Callable[[Any], None]] = {}
    if loaded.data.task.model_class == "classification":
        works["row"] = lambda model: model(input_ids=ids, attention_mask=torch.ones_like(ids))
    else:
        works |= {"first": lambda model: _answer(model, ids, 1), "all": lambda model: _answer(model, ids, 1 + TOKENS)}
    took: dict[tuple[str, str], list[float]] = {}
    with torch.inference_mode():
        for turn in range(TURNS + 1):
            for who, model in subjects.items():
                for what, work in works.items():
                    began = time.perf_counter()
                    work(model)
                    if ids.is_cuda:
                        torch.cuda.synchronize()
                    if turn:  # the first warms up
                        took.setdefault((who, what), []).append(time.perf_counter() - began)
    for who in subjects:
        if (who, "all") in took:
            pairs = zip(took[who, "all"], took[who, "first"], strict=True)
            took[who, "token"] = [(whole - first) / TOKENS for whole, first in pairs]
    return {
        what: {
            "seconds": median(took["tuned", what]),
            "base": median(took["base", what]),
            **_ratio(took["tuned", what], took["base", what]),
        }
        for what in ("row", "first", "token")
        if ("tuned", what) in took
    }


def _ratio(tuned: list[float], base: list[float]) -> dict[str, float]:
    ratios = sorted(one / other for one, other in zip(tuned, base, strict=True))
    return {"ratio": median(ratios), "low": ratios[0], "high": ratios[-1]}


def _answer(model: Any, ids: Any, tokens: int) -> None:
    import torch
    from transformers import GenerationConfig

    settings = GenerationConfig(do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0)
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
