"""A folder in transformers' layout: writing a merged model, opening it, and the lines that open it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.shell import literal
from luthier.exports.checking.tuned import Tuned
from luthier.models.saving import write_words

if TYPE_CHECKING:
    from torch import nn


def write_merged(tuned: Tuned, dtype: str, folder: Path, *, shard: str = "5GB") -> None:
    """Write the plain model with the tuned weights merged in, rounded once to `dtype`, and its tokenizer."""
    import torch

    model: Any = tuned.merged().to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    write_words(tuned.tokenizer, tuned.ends, folder)


def open_model(tuned: Tuned, folder: Path, **options: Any) -> nn.Module:
    """Load it with transformers, from safetensors."""
    import transformers

    auto: Any = getattr(transformers, tuned.auto_class)
    return auto.from_pretrained(str(folder), use_safetensors=True, **options)  # type: ignore[no-any-return]


def load_lines(tuned: Tuned, folder: str, options: str = "") -> list[str]:
    """Python lines that load it."""
    return [
        f"from transformers import {tuned.auto_class}, AutoTokenizer",
        f"model = {tuned.auto_class}.from_pretrained({literal(folder)}{options})",
        f"tokenizer = AutoTokenizer.from_pretrained({literal(folder)})",
    ]
