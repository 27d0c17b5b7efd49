"""What an export is: a form of a tuned model on disk, and how the program that will use it opens it.

An export writes, and then its result is opened anew and asked the run's own held-out prompts (see proof): what is
deployed has to be what was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier.core.errors import CannotMerge
from luthier.core.registry import Family, Plugin
from luthier.exports.checking.proof import Player
from luthier.exports.checking.tuned import Tuned

if TYPE_CHECKING:
    from torch import nn

    from luthier.exports.checking.proof import Prompt


UNPACKS = ("none", "int8", "nf4", "fp4")
"""How a base may be packed for the tuned weights to be merged."""


class Export(Plugin):
    """One form."""

    base_layout: ClassVar[bool] = True
    """A merged model in it has the weights of the base's architecture, and no others."""

    @property
    def needs(self) -> Literal["adapter", "merged"]:
        """Does it keep the adapter beside its base, or fold it in?"""
        return "merged"

    @property
    def on_plain_base(self) -> bool:
        """Does it belong to the base as it is, not packed?"""
        return self.needs == "merged"

    @property
    def replays(self) -> bool:
        """Is it opened, to replay the held-out prompts?"""
        return True

    def refuse(self, tuned: Tuned) -> None:
        """Raise InputError or CannotMerge where this form cannot hold the run, before anything is loaded."""
        if self.needs == "merged" and not tuned.method.mergeable:
            raise CannotMerge(
                f"method {tuned.method.name} changes what the model computes, not only its weights: it does not "
                f"fold into the base\n  fix: {tuned.export_command('adapter')}"
            )
        if self.needs == "merged" and tuned.quantize not in UNPACKS:
            raise CannotMerge(
                f"{tuned.run}: the files of the base are packed as {tuned.quantize}, which is not unpacked here, "
                f"so nothing folds into them\n  fix: {tuned.export_command('adapter')}"
            )
        if self.base_layout and self.needs == "merged" and (why := tuned.method.unmergeable(tuned.skeleton())):
            raise CannotMerge(f"{tuned.run}: {why}\n  fix: {tuned.export_command('adapter')}")

    def room(self, tuned: Tuned) -> int:
        """Bytes that will be written, about."""
        raise NotImplementedError

    def limit(self, tuned: Tuned) -> float:
        """Largest difference of two logits, as a share of their spread over the vocabulary, that rounding may make."""
        return 1e-3

    def mean_limit(self, tuned: Tuned) -> float | None:
        """Mean difference of two logits, as a share of the same spread, at most; None where `limit` says enough."""
        return None

    def write(self, tuned: Tuned, folder: Path) -> None:
        """Write everything that the program needs into `folder`, which is empty."""
        raise NotImplementedError

    def open(self, tuned: Tuned, folder: Path) -> nn.Module | Player:
        """What was written, opened by the program that will use it."""
        raise NotImplementedError

    def check(self, tuned: Tuned, opened: Any, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """What is held to the run beside its answers, for export.json; Unproved where it does not hold.

        `opened` is what `open` gave, or None where nothing is replayed.
        """
        return {}

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        """Lines that load what lies in `folder`."""
        raise NotImplementedError

    def card(self, tuned: Tuned, proof: Sequence[dict[str, Any]], checked: Mapping[str, Any]) -> str:
        """The README.md of the folder; `checked` is what `check` gave."""
        from luthier.exports.checking.card import card

        return card(tuned, self.name, self.use(tuned, "PATH_OF_THIS_FOLDER"), proof, checked)

    def deliver(self, tuned: Tuned, place: Path) -> list[str]:
        """What is to be done with the folder once it lies in its place, and lines that tell it; most do nothing."""
        return []


EXPORTS = Family(
    Export,
    "export",
)
