"""One plain model: the tuned weights folded into the base's own, in transformers' layout, sharded safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.exports.base import Export, Player, Tuned

if TYPE_CHECKING:
    from torch import nn

BOUNDS = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.3}
"""Largest difference of two logits as a share of their spread, where weights are rounded to this type once."""


class Merged(Export):
    """A model like the base, as fast as the base, that knows nothing of adapters."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights on disk; auto takes that of the base's files. It is merged in float32 and rounded once."""
    shard: str = "5GB"
    """Largest file."""

    def room(self, tuned: Tuned) -> int:
        size = {"float32": 4}.get(self._type(tuned), 2)
        return size * int(tuned.facts["parameters"])

    def limit(self, tuned: Tuned) -> float:
        return BOUNDS[self._type(tuned)]

    def write(self, tuned: Tuned, folder: Path) -> None:
        import torch
        from transformers import GenerationConfig

        model: Any = tuned.merged()
        model = model.to(getattr(torch, self._type(tuned)))
        model.config.dtype = getattr(torch, self._type(tuned))
        model.save_pretrained(folder, max_shard_size=self.shard)
        tuned.tokenizer.save_pretrained(folder)
        if tuned.ends:
            GenerationConfig(eos_token_id=list(tuned.ends), pad_token_id=tuned.tokenizer.pad_token_id).save_pretrained(
                folder
            )

    def open(self, tuned: Tuned, folder: Path) -> nn.Module | Player:
        import transformers

        auto = (
            transformers.AutoModelForSequenceClassification if tuned.classifies else transformers.AutoModelForCausalLM
        )
        return auto.from_pretrained(str(folder), dtype="auto")

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        auto = "AutoModelForSequenceClassification" if tuned.classifies else "AutoModelForCausalLM"
        return [
            f"from transformers import {auto}, AutoTokenizer",
            f'model = {auto}.from_pretrained("{folder}", dtype="auto")',
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
        ]

    def _type(self, tuned: Tuned) -> str:
        return tuned.stored if self.dtype == "auto" else self.dtype
