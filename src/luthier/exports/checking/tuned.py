"""A finished run, as an export takes it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.shell import shell_line
from luthier.methods.base import Method

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Tuned:
    """A finished run, as an export takes it. Nothing is loaded yet."""

    run: str
    weights: Path
    """Folder of the run with the adapter or the whole tuned model, its tokenizer and generation settings."""
    base: str  # folder or hub id, as in the recipe
    method: Method
    task: str
    classifies: bool  # whether it has a classification head
    quantize: str
    """Quantization of the base during training, by the recipe or in its own files; "none" if there was none."""
    stored: str  # type of the base's weights in its files: float32, bfloat16 or float16
    config: Any  # the base's config.json, as transformers reads it
    tokenizer: Any
    ends: tuple[int, ...]  # tokens that end an answer; empty for a classifier
    open_base: "Callable[[], nn.Module]"  # loads the untouched base as it was in training
    open_plain_base: "Callable[[], nn.Module]"  # loads the untouched base in float32, unquantized
    open_plain: "Callable[[], nn.Module]"  # loads the tuned model on the base in float32, unquantized
    skeleton: "Callable[[], nn.Module]"  # builds the base's modules and shapes, without weights
    facts: dict[str, Any]  # the run's result.json

    @property
    def auto_class(self) -> str:
        """Name of transformers' class that loads it."""
        return "AutoModelForSequenceClassification" if self.classifies else "AutoModelForCausalLM"

    def export_command(self, form: str) -> str:
        """What to type for another form of this run."""
        return shell_line("luthier", "export", Path(self.run), "--to", form)

    def merged(self) -> "nn.Module":
        """The plain base with the tuned weights merged in."""
        return self.method.merge(self.open_plain())  # type: ignore[no-any-return]
