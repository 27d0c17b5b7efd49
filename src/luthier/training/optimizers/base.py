"""What an optimizer is: how torch's object is made, and the memory that its states take."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, TypeAlias

from luthier.core.errors import MissingExtra, install
from luthier.core.registry import Family, Plugin

Parameter: TypeAlias = Any
"""A torch.nn.Parameter."""
Made: TypeAlias = Any
"""A torch.optim.Optimizer."""


class Optimizer(Plugin):
    """An optimizer, by its name in a recipe."""

    required: ClassVar[tuple[str, ...]] = ("build", "state_bytes")
    moves_by_rate: ClassVar[bool] = False
    """A step moves each weight by about the learning rate, however large its gradient or the weight is."""

    @property
    def needs(self) -> str:
        """The package beyond Luthier's requirements that it comes from, or nothing."""
        return ""

    def check(self, name: str) -> None:
        """MissingExtra where its package is not installed; `name` is what the recipe calls it. Cheap: comes early."""
        if self.needs and find_spec(self.needs) is None:
            message = f"train.optimizer={name} needs {self.needs}, which is not installed"
            raise MissingExtra(message, fix=f"{install('quantize')}, or train.optimizer=adamw")

    def build(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> Made:
        """The optimizer over parameter groups (params, lr, weight_decay); `lr` is the peak learning rate."""
        raise NotImplementedError

    def state_bytes(self, parameter: Parameter) -> int:
        """Bytes of the states that it keeps for one parameter, on the device that trains."""
        raise NotImplementedError


class TorchOptimizer(Optimizer):
    """The class of the same name in torch.optim, whose states are float32."""

    states: ClassVar[int]
    """States of each element of a parameter."""
    takes: ClassVar[Literal["", "betas", "momentum"]] = ""
    """What of train.betas torch's class takes: both, the first as its momentum, or neither."""

    def build(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> Made:
        from torch import optim

        known: dict[str, Any] = {"betas": betas, "momentum": betas[0]}
        options = {self.takes: known[self.takes]} if self.takes else {}
        return getattr(optim, type(self).__name__)(groups, lr=lr, **options)

    def state_bytes(self, parameter: Parameter) -> int:
        return 4 * self.states * int(parameter.numel())


PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw_8bit": ("adamw", {"bits": 8}),
    "paged_adamw": ("adamw", {"paged": True}),
    "paged_adamw_8bit": ("adamw", {"bits": 8, "paged": True}),
}
OPTIMIZERS = Family(Optimizer, "optimizer", presets=PRESETS)
