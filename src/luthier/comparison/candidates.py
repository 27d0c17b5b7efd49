"""What is compared: a method by its name, with the recipe's settings where they are its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.core.errors import InputError, LuthierError, did_you_mean
from luthier.methods.base import METHODS, PRESETS, QUANTIZED
from luthier.recipe.config import RunConfig
from luthier.training.settings import TrainConfig

SAME_AS_PRESETS = {"adapter"}
"""Methods that stand for nothing but their presets: houlsby and pfeiffer say which adapter it is."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A method in a comparison."""

    name: str
    config: RunConfig
    """The recipe with this method; seed and folder are still the recipe's."""
    reason: str = ""
    """Why it cannot run; empty where it can."""

    def of(self, seed: int, folder: Path, **train: Any) -> RunConfig:
        """The recipe of one run."""
        made = self.config.train.model_copy(update=train)
        return self.config.model_copy(
            update={"seed": seed, "run": str(folder / "arms" / f"{self.name}-s{seed}"), "train": made}
        )


def names_of(methods: str) -> list[str]:
    """The names behind `all` or `a,b,c`, in the order of the family. InputError names an unknown one."""
    every = [name for name in dict.fromkeys([*METHODS.names(), *PRESETS]) if name not in SAME_AS_PRESETS]
    if methods == "all":
        return every
    named = list(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    known = [*every, *SAME_AS_PRESETS]
    for name in named:
        if name not in known:
            raise InputError(
                f"--methods: there is no method {name!r}{did_you_mean(name, known)}", fix="luthier list methods"
            )
    if not named:
        raise InputError("--methods names no method", fix="--methods all, or --methods lora,bitfit")
    return named


def arm(recipe: RunConfig, name: str) -> Arm:
    """The recipe with another method. What the recipe says of its own method, rate and all, stays with that one."""
    own = _name(recipe) == name
    raw = recipe.model_dump(mode="json")
    if not own:
        raw["method"] = name
        raw["train"]["lr"] = None
        raw["model"]["quantize"] = (
            "none" if recipe.model.quantize == QUANTIZED.get(_name(recipe), ("",))[0] else (recipe.model.quantize)
        )
        if name in QUANTIZED:  # which says how, where the recipe does not
            del raw["model"]["quantize"]
            if recipe.train.optimizer == TrainConfig().optimizer:
                del raw["train"]["optimizer"]
    try:
        return Arm(name, RunConfig.model_validate(raw))
    except ValueError as error:
        return Arm(name, recipe, reason=str(error).splitlines()[-1])


def _name(recipe: RunConfig) -> str:
    """What a person would call the recipe's method: a preset where its settings are one's."""
    for name, (method, settings) in PRESETS.items():
        packed = QUANTIZED.get(name, (recipe.model.quantize,))[0]
        own = METHODS.parse({"name": method, **settings})
        if recipe.method == own and packed == recipe.model.quantize and (settings or name in QUANTIZED):
            return name
    return recipe.method.name


def arms_of(recipe: RunConfig, methods: str, check: Any) -> list[Arm]:
    """All arms; `check(config)` raises what stands in the way of one.

    InputError where it is one that the user named; of `all` it becomes a row with its reason.
    """
    made: list[Arm] = []
    for name in names_of(methods):
        one = arm(recipe, name)
        if not one.reason:
            try:
                check(one.config)
            except LuthierError as error:
                if methods != "all":
                    raise InputError(f"--methods {name}: {error}", fix="leave it out, or fix what it names") from error
                one = replace(one, reason=str(error).replace("\n", "; "))
        made.append(one)
    if not any(not one.reason for one in made):
        raise InputError(f"no method can run: {made[0].name}: {made[0].reason}")
    return made


def runs_of(arms: Sequence[Arm], seeds: Sequence[int]) -> list[tuple[Arm, int]]:
    """What is to be run, seeds outermost: after the first pass every method has a result."""
    return [(one, seed) for seed in seeds for one in arms if not one.reason]
