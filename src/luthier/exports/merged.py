"""One plain model: the tuned weights folded into the base's own, in transformers' layout, sharded safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.exports.base import Export
from luthier.exports.checking.layout import lines, open_model, write_merged
from luthier.exports.checking.proof import Player
from luthier.exports.checking.tuned import Tuned

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
        write_merged(tuned, self._type(tuned), folder, shard=self.shard)

    def open(self, tuned: Tuned, folder: Path) -> nn.Module | Player:
        return open_model(tuned, folder, dtype="auto")

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        return lines(tuned, folder, ', dtype="auto"')

    def _type(self, tuned: Tuned) -> str:
        return tuned.stored if self.dtype == "auto" else self.dtype
