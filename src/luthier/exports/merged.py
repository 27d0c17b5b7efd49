"""One plain model: the tuned weights merged into the base's own, in transformers' layout, sharded safetensors."""

from pathlib import Path
from typing import Any, Literal

from luthier.core.shell import literal
from luthier.exports.base import Bounds, Export, Opened, Tuned, write_words

BOUNDS = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.3}
"""Largest difference of two logits as a share of their spread, if weights are rounded to this type once."""
COMPUTED: dict[str, Bounds] = {"float16": (0.15, 0.015), "bfloat16": (1.0, 0.1)}
"""The same with all computed in this type, and that of the mean: a real base of 30 layers differs in bfloat16 from
itself in float32 by 0.46 and 0.05 (SmolLM2-135M, make test-real)."""


class Merged(Export):
    """A model like the base, as fast as the base, without an adapter."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights on disk; auto takes that of the base's files. Merged in float32 and rounded once."""
    shard: str = "5GB"
    """Size of the largest file."""

    def required_bytes(self, tuned: Tuned) -> int:
        return (4 if self._type(tuned) == "float32" else 2) * int(tuned.facts["parameters"])

    def bounds(self, tuned: Tuned) -> Bounds:
        return COMPUTED.get(tuned.computed, (BOUNDS[self._type(tuned)], None))

    def write(self, tuned: Tuned, folder: Path) -> None:
        import torch

        model: Any = tuned.merged().to(getattr(torch, self._type(tuned)))
        model.config.dtype = getattr(torch, self._type(tuned))
        model.save_pretrained(folder, max_shard_size=self.shard)
        write_words(tuned.tokenizer, tuned.ends, folder)

    def open(self, tuned: Tuned, folder: Path) -> Opened:
        # In the type that the run computes in: else the check would measure that type, not the export.
        return open_model(tuned, folder, dtype=tuned.computed)  # type: ignore[no-any-return]

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        return load_lines(tuned, folder, ', dtype="auto"')

    def _type(self, tuned: Tuned) -> str:
        return tuned.stored if self.dtype == "auto" else self.dtype


def open_model(tuned: Tuned, folder: Path, **options: Any) -> Any:
    """Load it with transformers, from safetensors."""
    import transformers

    return getattr(transformers, tuned.auto_class).from_pretrained(str(folder), use_safetensors=True, **options)


def load_lines(tuned: Tuned, folder: str, options: str = "") -> list[str]:
    """Python lines that load it."""
    return [
        f"from transformers import {tuned.auto_class}, AutoTokenizer",
        f"model = {tuned.auto_class}.from_pretrained({literal(folder)}{options})",
        f"tokenizer = AutoTokenizer.from_pretrained({literal(folder)})",
    ]
