"""Decide what the recipe leaves open (auto) so that the run fits: packing, tokens per pass, gradient checkpointing."""

from dataclasses import dataclass, replace
from typing import Any

from luthier.core.errors import InputError
from luthier.core.units import duration, gigabytes
from luthier.methods.base import METHODS
from luthier.planning.plan import Plan, PlanInputs, estimate, tuned_skeleton, workload_of
from luthier.training.packing import check_packing, packs_well
from luthier.training.settings import RunSettings

TOKENS = {"cpu": 1024}
"""Tokens of a packed pass, where the recipe names none: more make a CPU no faster."""
MOST = 8192
FEWEST = 256
"""A pass of fewer tokens makes matrix products slow: gradient checkpointing is the better choice."""


@dataclass(frozen=True, slots=True)
class ResolvedSettings(RunSettings):
    """The settings of a run before its base is loaded, and the plan made with them."""

    plan: Plan | None
    """None where the model's code cannot run without numbers."""
    why: str = ""
    """Why there is no plan."""

    def summary(self) -> str:
        """The settings and the plan in one line."""
        assert self.plan is not None
        target = self.plan.target
        packing = "packing on" if self.pack else "packing off"
        kept = "gradient checkpointing" if self.train.gradient_checkpointing else "no gradient checkpointing"
        return (
            f"about {gigabytes(self.plan.peak)} at most ({gigabytes(target.free)} of {gigabytes(target.memory)} "
            f"are free), {self.plan.tokens:,} tokens per pass, {packing}, {kept}; {duration(self.plan.seconds)} of "
            "training"
        )

    def record(self) -> dict[str, Any]:
        """The settings as they are kept with the run, so that a resumed one cuts its steps alike."""
        train = self.train.model_dump(include={"packing", "micro_tokens", "gradient_checkpointing"})
        return {"train": train, "pack": self.pack, "steps": self.steps, "plan": self.plan and self.plan.record()}


def resolve(inputs: PlanInputs) -> ResolvedSettings:
    """Decide what is open. Raises InputError where the recipe asks for packing that is impossible."""
    train, where = inputs.train, inputs.device
    packing = _packs_well(inputs) if train.packing == "auto" else train.packing
    if packing:
        try:
            check_packing(inputs.task, inputs.method)
        except InputError:
            if train.packing != "auto":
                raise
            packing = False
    tokens = train.micro_tokens or (TOKENS.get(where, MOST) if packing else None)
    sized = train.micro_tokens is None and (train.micro_batch is None or packing)
    auto = train.gradient_checkpointing == "auto"
    for checkpointing in (False, True) if auto else (train.gradient_checkpointing,):
        tried = _planned(inputs, packing, tokens, checkpointing)
        if tried.plan is not None and not tried.plan.fits and sized:
            made = tried.plan
            grows = made.parts["activations"] + made.parts["logits"]  # with the tokens of a pass
            fewer = int((made.target.room - made.needed + grows) / max(1, grows) * made.tokens)
            if fewer >= min(inputs.longest, FEWEST):
                tried = _planned(inputs, packing, max(fewer, inputs.longest), checkpointing)
        if tried.plan is None or tried.plan.fits:
            break
    return tried


def _packs_well(inputs: PlanInputs) -> bool:
    if inputs.cluster is not None:
        return inputs.cluster.device.half == "bf16" and inputs.train.precision != "fp32"
    return packs_well(inputs.device, inputs.train.precision)


def _planned(inputs: PlanInputs, packing: bool, tokens: int | None, checkpointing: Any) -> ResolvedSettings:
    settings = {"packing": packing, "micro_tokens": tokens, "gradient_checkpointing": checkpointing}
    train = inputs.train.model_copy(update=settings)
    inputs = replace(inputs, train=train)
    pack = max(tokens or 0, inputs.longest) if packing else None
    work, plan, why = workload_of(inputs, pack), None, ""
    try:
        plan = estimate(inputs, work)
    except (InputError, ImportError):
        raise
    except Exception as error:  # a model's own code may ask for numbers in any way it likes
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return ResolvedSettings(train, pack, inputs.steps, inputs.seed, plan, why)


def alternatives(inputs: PlanInputs, resolved: ResolvedSettings) -> list[tuple[str, Plan]]:
    """Settings that need less memory, as typed on the command line, each with its plan."""
    model, method, train = inputs.model, inputs.method, resolved.train
    changes: list[tuple[str, dict[str, Any]]] = []
    if not train.gradient_checkpointing:
        again = train.model_copy(update={"gradient_checkpointing": True})
        changes.append(("train.gradient_checkpointing=true", {"train": again}))
    if inputs.device == "cpu" and model.dtype == "auto" and model.quantize == "none":
        changes.append(("model.dtype=bfloat16", {"model": model.model_copy(update={"dtype": "bfloat16"})}))
    if model.quantize == "none" and method.quantized_base and model.init == "pretrained":
        changes.append(("model.quantize=nf4", {"model": model.model_copy(update={"quantize": "nf4"})}))
    if method.saves == "model":
        changes.append(("method=lora", {"method": METHODS.parse("lora")}))
        eight = train.model_copy(update={"optimizer": "adamw_8bit"})
        changes.append(("train.optimizer=adamw_8bit", {"train": eight}))
    found = []
    for setting, change in changes:
        changed = replace(inputs, **change)
        checkpointing = changed.train.gradient_checkpointing is True
        try:
            if "method" in change:
                tuned = tuned_skeleton(model, changed.method, inputs.source, inputs.labels, inputs.steps)
                changed = replace(changed, tuned=tuned)
            tried = _planned(changed, bool(train.packing), train.micro_tokens, checkpointing)
        except (InputError, ImportError):
            continue
        if tried.plan is not None:
            found.append((setting, tried.plan))
    return found
