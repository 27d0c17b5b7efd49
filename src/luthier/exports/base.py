"""What an export is: a form of a tuned model on disk, and how the program that will use it opens it.

What was written is opened and replays held-out prompts: it has to answer as what was trained (see checking.parity).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from luthier.core.errors import CannotMerge
from luthier.core.registry import Family, Plugin
from luthier.exports.checking.tuned import Bounds, HeldOutPrompt, Runner, Tuned, card

if TYPE_CHECKING:
    from torch import nn

__all__ = ["EXPORTS", "Bounds", "Export", "HeldOutPrompt", "Opened", "Tuned"]
Opened: TypeAlias = "nn.Module | Runner"
UNPACKS = ("none", "int8", "nf4", "fp4")
"""Quantizations of a base that can be undone, so that the tuned weights can be merged into it."""


class Export(Plugin):
    """One form. This class describes a merged model; other forms override `refuse`."""

    required: ClassVar[tuple[str, ...]] = ("required_bytes", "write", "open", "use")

    base_layout: ClassVar[bool] = True
    """Whether a merged model has the weights of the base's architecture, and no others."""

    @property
    def on_plain_base(self) -> bool:
        """Whether it belongs to the unquantized base."""
        return True

    def refuse(self, tuned: Tuned) -> None:
        """Raise InputError or CannotMerge if this form cannot hold the run, before anything is loaded."""
        why = ""
        if not tuned.method.mergeable:
            why = f"method {tuned.method.name} changes what the model computes, so it cannot be merged"
        elif tuned.quantize not in UNPACKS:
            why = f"the base's files are quantized as {tuned.quantize}, which cannot be undone here to merge weights"
        elif self.base_layout:
            why = tuned.method.unmergeable(tuned.skeleton())
        if why:
            raise CannotMerge(f"{tuned.run}: {why}\n  fix: {tuned.export_command('adapter')}")

    def required_bytes(self, tuned: Tuned) -> int:
        """Estimated bytes on disk."""
        raise NotImplementedError

    def bounds(self, tuned: Tuned) -> Bounds:
        """Allowed differences of logits; None as the second: no bound on the mean."""
        return 1e-3, None

    def write(self, tuned: Tuned, folder: Path) -> None:
        """Write everything that the program needs into `folder`, which is empty."""
        raise NotImplementedError

    def open(self, tuned: Tuned, folder: Path) -> Opened:
        """Open what was written, with the program that will use it."""
        raise NotImplementedError

    def check(self, tuned: Tuned, opened: Any, prompts: Sequence[HeldOutPrompt]) -> dict[str, Any]:
        """Further checks, for export.json; Unproved if one fails. `opened` is None if nothing is replayed."""
        return {}

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        """Lines that load what lies in `folder`."""
        raise NotImplementedError

    def card(self, tuned: Tuned, parity: Sequence[dict[str, Any]], checked: Mapping[str, Any]) -> str:
        """README.md of the folder; `checked` is the result of `check`."""
        return card(tuned, self.name, self.use(tuned, "PATH_OF_THIS_FOLDER"), parity, checked)

    def publish(self, tuned: Tuned, place: Path) -> list[str]:
        """Send the finished folder to where it belongs, and return lines that report it; most forms do nothing."""
        return []


EXPORTS = Family(Export, "export")
