"""A folder in transformers' layout: what lies in it beside the weights, how it is opened, the lines that open it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.exports.base import Tuned
from luthier.shell import literal

if TYPE_CHECKING:
    from torch import nn


def write_words(tokenizer: Any, ends: Sequence[int], folder: Path) -> None:
    """The tokenizer with its template; with `ends` also generation settings, so that whoever loads it stops there."""
    from transformers import GenerationConfig

    tokenizer.save_pretrained(folder)
    if ends:
        GenerationConfig(eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)


def write_merged(tuned: Tuned, dtype: str, folder: Path, *, shard: str = "5GB") -> None:
    """The plain model with the tuned weights folded in, rounded once to `dtype`, with all that belongs to it."""
    import torch

    model: Any = tuned.merged()
    model = model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    write_words(tuned.tokenizer, tuned.ends, folder)


def auto_class(tuned: Tuned) -> str:
    """Name of transformers' class that opens it."""
    return "AutoModelForSequenceClassification" if tuned.classifies else "AutoModelForCausalLM"


def open_model(tuned: Tuned, folder: Path, **options: Any) -> nn.Module:
    """By transformers, from safetensors."""
    import transformers

    auto: Any = getattr(transformers, auto_class(tuned))
    return auto.from_pretrained(str(folder), use_safetensors=True, **options)  # type: ignore[no-any-return]


def lines(tuned: Tuned, folder: str, options: str = "") -> list[str]:
    """Python that opens it."""
    auto, place = auto_class(tuned), literal(folder)
    return [
        f"from transformers import {auto}, AutoTokenizer",
        f"model = {auto}.from_pretrained({place}{options})",
        f"tokenizer = AutoTokenizer.from_pretrained({place})",
    ]
