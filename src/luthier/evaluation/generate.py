"""Greedy answers to many prompts at once, left-padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.data.template import Template

if TYPE_CHECKING:
    from torch import nn


def generate(
    model: nn.Module, template: Template, prompts: Sequence[list[int]], *, max_new_tokens: int, batch_size: int
) -> list[str]:
    """The model's answer to each prompt (token ids), without the end token, in the order of the prompts."""
    import torch
    from transformers import GenerationConfig

    pad = template.tokenizer.pad_token_id or 0
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(template.end_ids), pad_token_id=pad
    )
    where = next(model.parameters()).device
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            width = max(len(prompts[i]) for i in numbers)
            ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in numbers], device=where)
            mask = torch.tensor(
                [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in numbers], device=where
            )
            made = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)  # type: ignore[operator]
            for i, tokens in zip(numbers, made[:, width:].tolist(), strict=True):
                answers[i] = str(template.tokenizer.decode(tokens, skip_special_tokens=True))
    return answers
