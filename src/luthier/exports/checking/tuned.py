"""A finished run, as an export takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.shell import command
from luthier.methods.base import Method

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Tuned:
    """A finished run, as an export takes it. Nothing is loaded yet."""

    run: str
    weights: Path
    """Folder of the run with the adapter or the whole tuned model, its tokenizer and generation settings."""
    base: str
    """Folder or hub id, as the recipe has it."""
    method: Method
    task: str
    classifies: bool
    """Has it a classification head?"""
    quantize: str
    """How the base was packed while the adapter was trained, by the recipe or in its own files; "none" if not."""
    stored: str
    """Type of the base's weights in its files: float32, bfloat16 or float16."""
    config: Any
    """The base's config.json, as transformers reads it."""
    tokenizer: Any
    ends: tuple[int, ...]
    """Tokens that end an answer; none of a model that does not answer."""
    open_base: Callable[[], nn.Module]
    """The untouched base as it was in training, packed where it was packed then, loaded anew."""
    open_plain_base: Callable[[], nn.Module]
    """The untouched base in float32, not packed."""
    open_plain: Callable[[], nn.Module]
    """The tuned model on the base in float32, not packed."""
    skeleton: Callable[[], nn.Module]
    """The base's modules and shapes, without weights."""
    facts: dict[str, Any]
    """What stands in the run's result.json."""

    def export_command(self, form: str) -> str:
        """What to type for another form of this run."""
        return command("luthier", "export", Path(self.run), "--to", form)

    def merged(self) -> nn.Module:
        """The plain base with the tuned weights folded in."""
        return self.method.merge(self.open_plain())
