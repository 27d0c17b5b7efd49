"""What a tuning method is: a few fields, and how they change a model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.plugins import Family, Plugin

if TYPE_CHECKING:
    from torch import Tensor, nn


class Method(Plugin):
    """A way to make a pretrained model trainable. Only `attach` must be written, and how weights are kept."""

    paper: ClassVar[str] = ""
    """arXiv id of the source."""
    suggested_lr: ClassVar[float] = 1e-4
    """Peak learning rate when the recipe gives none (docs/methods of each paper; not one for all)."""
    mergeable: ClassVar[bool] = True
    """The tuned weights fold into the base model's own."""
    quantized_base: ClassVar[bool] = True
    """Works on a base model loaded in 8 or 4 bit."""
    saves: ClassVar[Literal["adapter", "model"]] = "adapter"
    """Folder of a run that holds the result: an adapter beside the base, or a whole model."""

    def attach(self, model: nn.Module, *, steps: int, classify: bool = False) -> nn.Module:
        """Return `model` with the right parameters trainable and the rest frozen.

        `steps` is the length of the run (AdaLoRA's budget needs it); `classify` says that the model
        has a classification head, which trains with every method and is saved with it.
        """
        raise NotImplementedError

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A term added to the loss of every step (AdaLoRA's orthogonality), or None."""
        return None

    def after_step(self, model: nn.Module, index: int) -> None:
        """Called once after each optimizer step; most methods have nothing to do."""

    def disabled(self, model: nn.Module) -> AbstractContextManager[object] | None:
        """A context in which `model` answers as the untouched base, or None where that is impossible."""
        return None

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the tuned weights to `folder` (safetensors, loadable with PEFT or transformers)."""
        raise NotImplementedError

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put weights written by `save` back into an attached `model`; a missing key is an error."""
        raise NotImplementedError

    def merge(self, model: nn.Module) -> nn.Module:
        """The plain base model with the tuned weights folded in; raises CannotMerge, never lies."""
        raise NotImplementedError


METHODS = Family(Method, "method")
