"""What the recipe leaves open (auto), decided so that the run fits: packing, tokens of a pass, checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.core.errors import InputError
from luthier.core.units import duration, gigabytes
from luthier.methods.base import Method
from luthier.models.load import device
from luthier.models.settings import ModelConfig
from luthier.planning.machine import TargetMachine
from luthier.planning.plan import Plan, load_of, plan
from luthier.tasks.base import Task
from luthier.training.packing import check_packing, packs_well
from luthier.training.settings import TrainConfig

TOKENS = {"cpu": 1024}
"""Tokens of a packed pass, where the recipe names none: more make a CPU no faster."""
MOST = 8192
FEWEST = 256
"""A pass of fewer tokens leaves matrix products slow: rather are activations computed twice."""


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """The train block with nothing left open, and what was planned with it."""

    train: TrainConfig
    pack: int | None
    """Tokens of a packed sequence; None: rows are padded."""
    plan: Plan | None
    """None where the model's code cannot run without numbers."""
    why: str = ""
    """What stands in the way of a plan, or of the run."""

    def said(self) -> str:
        """In a line."""
        assert self.plan is not None
        passes = f"{self.plan.tokens:,} tokens a pass, {'packed' if self.pack else 'padded'}"
        kept = "activations made twice" if self.train.gradient_checkpointing else "activations kept"
        return (
            f"about {gigabytes(self.plan.peak)} at most ({gigabytes(self.plan.free)} of {gigabytes(self.plan.total)} "
            f"are free), {passes}, {kept}; {duration(self.plan.seconds)} of training"
        )

    def record(self) -> dict[str, Any]:
        """As it is kept with the run, so that a resumed one cuts its steps alike."""
        keys = ("packing", "micro_tokens", "gradient_checkpointing")
        return {
            "train": {key: getattr(self.train, key) for key in keys},
            "pack": self.pack,
            "plan": self.plan.record() if self.plan is not None else None,
        }

    @classmethod
    def again(cls, train: TrainConfig, record: dict[str, Any]) -> ResolvedSettings:
        """What `record` kept, for the same recipe; the plan itself is only needed at the start."""
        return cls(train.model_copy(update=record["train"]), record["pack"], None)


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """What is to be trained, and on what."""

    model: ModelConfig
    method: Method
    train: TrainConfig
    task: Task
    source: str
    lengths: Sequence[int]
    """Tokens of each row; for a stream one row of the largest length."""
    learned: Sequence[int]
    steps: int
    precision: str
    labels: tuple[str, ...] | None
    seed: int
    other: TargetMachine | None = None
    """Where it is to run, if not here."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)


def resolve(inputs: PlanInputs) -> ResolvedSettings:
    """Decide what is open. Raises InputError where the recipe asks for packing that cannot be."""
    train = inputs.train
    packing = train.packing
    if packing == "auto":
        packing = packs_well(device(inputs.model), inputs.precision) and _can_pack(inputs)
    elif packing:
        check_packing(inputs.task, inputs.method)
    tokens = train.micro_tokens or (TOKENS.get(device(inputs.model), MOST) if packing else None)
    wished = train.gradient_checkpointing
    sized = train.micro_tokens is None and (train.micro_batch is None or bool(packing))
    for checkpointing in (False, True) if wished == "auto" else (wished,):
        tried = _with(inputs, bool(packing), tokens, checkpointing=checkpointing)
        if tried.plan is None or tried.plan.fits:
            return tried
        fewer = _room(tried.plan, inputs) if sized else 0
        if fewer >= min(inputs.longest, FEWEST):
            tried = _with(inputs, bool(packing), max(fewer, inputs.longest), checkpointing=checkpointing)
            if tried.plan is None or tried.plan.fits:
                return tried
    return tried


def _can_pack(inputs: PlanInputs) -> bool:
    try:
        check_packing(inputs.task, inputs.method)
    except InputError:
        return False
    return True


def _with(inputs: PlanInputs, packing: bool, tokens: int | None, *, checkpointing: bool) -> ResolvedSettings:
    train = inputs.train.model_copy(
        update={"packing": packing, "micro_tokens": tokens, "gradient_checkpointing": checkpointing}
    )
    pack = max(tokens or 0, inputs.longest) if packing else None
    load = load_of(inputs.lengths, inputs.learned, train, inputs.steps, pack=pack, seed=inputs.seed)
    try:
        made = plan(
            inputs.model,
            inputs.method,
            train,
            inputs.source,
            load,
            precision=inputs.precision,
            labels=inputs.labels,
            packed=packing,
            other=inputs.other,
        )
    except (InputError, ImportError):
        raise
    except Exception as error:  # a model's own code may ask for numbers in any way it likes
        return ResolvedSettings(
            train, pack, None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
    return ResolvedSettings(train, pack, made)


def _room(made: Plan, inputs: PlanInputs) -> int:
    """Tokens of a pass for which there is memory: activations grow with them."""
    grows = made.parts["activations"] + made.parts["logits"]
    left = made.room - (made.needed - grows)
    return int(left / max(1, grows) * made.tokens) if left > 0 else 0


def alternatives(inputs: PlanInputs, resolved: ResolvedSettings) -> list[tuple[str, Plan]]:
    """Other settings that need less, each with its plan: what to change, as one would type it."""
    found: list[tuple[str, Plan]] = []
    train = resolved.train
    changes: list[tuple[str, PlanInputs]] = []
    if not train.gradient_checkpointing:
        changed = train.model_copy(update={"gradient_checkpointing": True})
        changes.append(("train.gradient_checkpointing=true", replace(inputs, train=changed)))
    if device(inputs.model) == "cpu" and inputs.model.dtype == "auto" and inputs.model.quantize == "none":
        half = inputs.model.model_copy(update={"dtype": "bfloat16"})
        changes.append(("model.dtype=bfloat16", replace(inputs, model=half)))
    if inputs.model.quantize == "none" and inputs.method.quantized_base and inputs.model.init == "pretrained":
        packed = inputs.model.model_copy(update={"quantize": "nf4"})
        changes.append(("model.quantize=nf4", replace(inputs, model=packed)))
    if inputs.method.saves == "model":
        from luthier.methods.base import METHODS

        changes.append(("method=lora", replace(inputs, method=METHODS.parse("lora"))))
        eight = train.model_copy(update={"optimizer": "adamw_8bit"})
        changes.append(("train.optimizer=adamw_8bit", replace(inputs, train=eight)))
    for said, changed_job in changes:
        own = changed_job.train
        try:
            tried = _with(
                changed_job,
                bool(train.packing),
                train.micro_tokens,
                checkpointing=own.gradient_checkpointing is True,
            )
        except (InputError, ImportError):
            continue
        if tried.plan is not None:
            found.append((said, tried.plan))
    return found
