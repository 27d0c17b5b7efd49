"""What the recipe leaves open (auto), decided so that the run fits: packing, tokens of a pass, checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.config import ModelConfig, TrainConfig
from luthier.errors import InputError
from luthier.methods.base import Method
from luthier.models.load import device
from luthier.planning.machine import Other
from luthier.planning.plan import Plan, load_of, plan
from luthier.planning.words import duration, gigabytes
from luthier.tasks.base import Task
from luthier.training.packing import check_packing, packs_well

TOKENS = {"cpu": 1024}
"""Tokens of a packed pass, where the recipe names none: more make a CPU no faster."""
MOST = 8192
FEWEST = 256
"""A pass of fewer tokens leaves matrix products slow: rather are activations computed twice."""


@dataclass(frozen=True, slots=True)
class Settled:
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
    def again(cls, train: TrainConfig, record: dict[str, Any]) -> Settled:
        """What `record` kept, for the same recipe; the plan itself is only needed at the start."""
        return cls(train.model_copy(update=record["train"]), record["pack"], None)


@dataclass(frozen=True, slots=True)
class Job:
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
    other: Other | None = None
    """Where it is to run, if not here."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)


def settle(job: Job) -> Settled:
    """Decide what is open. Raises InputError where the recipe asks for packing that cannot be."""
    train = job.train
    packing = train.packing
    if packing == "auto":
        packing = packs_well(device(job.model), job.precision) and _can_pack(job)
    elif packing:
        check_packing(job.task, job.method)
    tokens = train.micro_tokens or (TOKENS.get(device(job.model), MOST) if packing else None)
    wished = train.gradient_checkpointing
    sized = train.micro_tokens is None and (train.micro_batch is None or bool(packing))
    for checkpointing in (False, True) if wished == "auto" else (wished,):
        tried = _with(job, bool(packing), tokens, checkpointing=checkpointing)
        if tried.plan is None or tried.plan.fits:
            return tried
        fewer = _room(tried.plan, job) if sized else 0
        if fewer >= min(job.longest, FEWEST):
            tried = _with(job, bool(packing), max(fewer, job.longest), checkpointing=checkpointing)
            if tried.plan is None or tried.plan.fits:
                return tried
    return tried


def _can_pack(job: Job) -> bool:
    try:
        check_packing(job.task, job.method)
    except InputError:
        return False
    return True


def _with(job: Job, packing: bool, tokens: int | None, *, checkpointing: bool) -> Settled:
    train = job.train.model_copy(
        update={"packing": packing, "micro_tokens": tokens, "gradient_checkpointing": checkpointing}
    )
    pack = max(tokens or 0, job.longest) if packing else None
    load = load_of(job.lengths, job.learned, train, job.steps, pack=pack, seed=job.seed)
    try:
        made = plan(
            job.model,
            job.method,
            train,
            job.source,
            load,
            precision=job.precision,
            labels=job.labels,
            packed=packing,
            other=job.other,
        )
    except (InputError, ImportError):
        raise
    except Exception as error:  # a model's own code may ask for numbers in any way it likes
        return Settled(train, pack, None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return Settled(train, pack, made)


def _room(made: Plan, job: Job) -> int:
    """Tokens of a pass for which there is memory: activations grow with them."""
    grows = made.parts["activations"] + made.parts["logits"]
    left = made.room - (made.needed - grows)
    return int(left / max(1, grows) * made.tokens) if left > 0 else 0


def alternatives(job: Job, settled: Settled) -> list[tuple[str, Plan]]:
    """Other settings that need less, each with its plan: what to change, as one would type it."""
    found: list[tuple[str, Plan]] = []
    train = settled.train
    changes: list[tuple[str, Job]] = []
    if not train.gradient_checkpointing:
        changed = train.model_copy(update={"gradient_checkpointing": True})
        changes.append(("train.gradient_checkpointing=true", replace(job, train=changed)))
    if device(job.model) == "cpu" and job.model.dtype == "auto" and job.model.quantize == "none":
        half = job.model.model_copy(update={"dtype": "bfloat16"})
        changes.append(("model.dtype=bfloat16", replace(job, model=half)))
    if job.model.quantize == "none" and job.method.quantized_base and job.model.init == "pretrained":
        packed = job.model.model_copy(update={"quantize": "nf4"})
        changes.append(("model.quantize=nf4", replace(job, model=packed)))
    if job.method.saves == "model":
        from luthier.methods.base import METHODS

        changes.append(("method=lora", replace(job, method=METHODS.parse("lora"))))
        eight = train.model_copy(update={"optimizer": "adamw_8bit"})
        changes.append(("train.optimizer=adamw_8bit", replace(job, train=eight)))
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
