"""A folder in transformers' layout: what lies in it beside the weights, how it is opened, the lines that open it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.shell import literal
from luthier.exports.checking.tuned import Tuned
from luthier.models.saving import write_words

if TYPE_CHECKING:
    from torch import nn


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
