"""What lies beside the weights of a saved model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_words(tokenizer: Any, ends: Sequence[int], folder: Path) -> None:
    """The tokenizer with its template; with `ends` also generation settings, so that whoever loads it stops there."""
    from transformers import GenerationConfig

    tokenizer.save_pretrained(folder)
    if ends:
        GenerationConfig(eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
