"""The variants of a comparison: the recipe with one method each; the recipe's settings stay with its own method."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.core.errors import InputError, LuthierError, did_you_mean
from luthier.methods.base import METHODS, PRESETS, QUANTIZED
from luthier.planning.advisor.candidates import preset_of
from luthier.recipe.config import RunConfig
from luthier.training.settings import TrainConfig

SAME_AS_PRESETS = {"adapter", "peft"}
"""Methods that a name alone does not say: houlsby and pfeiffer say which adapter it is, and peft needs a type."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A method in a comparison."""

    name: str
    config: RunConfig
    """The recipe with this method; seed and folder are still the recipe's."""
    reason: str = ""
    """Why it cannot run; empty where it can."""

    def recipe(self, seed: int, folder: Path, **train: Any) -> RunConfig:
        """The recipe of one run."""
        changed = self.config.train.model_copy(update=train)
        run = str(self.run_folder(folder, seed))
        return self.config.model_copy(update={"seed": seed, "run": run, "train": changed})

    def run_folder(self, folder: Path, seed: int) -> Path:
        """The folder of one run within the comparison's."""
        return folder / "arms" / f"{self.name}-s{seed}"


def method_names(methods: str) -> list[str]:
    """The names behind `all` or `a,b,c`, in the order of the family. InputError for an unknown one."""
    every = [name for name in dict.fromkeys([*METHODS.names(), *PRESETS]) if name not in SAME_AS_PRESETS]
    if methods == "all":
        return every
    named = list(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    known = [*every, *SAME_AS_PRESETS]
    for name in named:
        if name not in known:
            near = did_you_mean(name, known)
            raise InputError(f"--methods: there is no method {name!r}{near}", fix="luthier list methods")
    if not named:
        raise InputError("--methods names no method", fix="--methods all, or --methods lora,bitfit")
    return named


def variant(recipe: RunConfig, name: str) -> Variant:
    """The recipe with the method `name`. What it sets for its own method, learning rate included, stays with that."""
    raw = recipe.model_dump(mode="json")
    own = preset_of(recipe.method, recipe.model.quantize)
    if own != name:
        raw["method"], raw["train"]["lr"] = name, None
        if name in QUANTIZED:  # the preset decides, where the recipe does not
            del raw["model"]["quantize"]
            if recipe.train.optimizer == TrainConfig().optimizer:
                del raw["train"]["optimizer"]
        elif recipe.model.quantize == QUANTIZED.get(own, ("",))[0]:
            raw["model"]["quantize"] = "none"
    try:
        return Variant(name, RunConfig.model_validate(raw))
    except ValueError as error:
        return Variant(name, recipe, reason=str(error).splitlines()[-1])


def variants_of(recipe: RunConfig, methods: str, check: Callable[[RunConfig], Any]) -> list[Variant]:
    """All variants; `check(config)` raises where one cannot run (see `with_reason`)."""
    made = [with_reason(variant(recipe, name), methods, check) for name in method_names(methods)]
    if all(one.reason for one in made):
        raise InputError(f"no method can run: {made[0].name}: {made[0].reason}")
    return made


def with_reason(one: Variant, methods: str, check: Callable[[RunConfig], Any]) -> Variant:
    """The variant, with the reason where it cannot run. InputError where the user named it among `methods`."""
    try:
        if not one.reason:
            check(one.config)
        return one
    except LuthierError as error:
        if methods != "all":
            raise InputError(f"--methods {one.name}: {error}", fix="leave it out, or fix what it names") from error
        return replace(one, reason=str(error).replace("\n", "; "))
