"""Every method that can serve a task on a base, with its bytes, and, when asked, its planned memory and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError
from luthier.methods.base import METHODS, QUANTIZED, Method
from luthier.models.settings import ModelConfig
from luthier.planning.advisor.evidence import arm_of
from luthier.planning.advisor.question import Facts
from luthier.planning.machine import TargetMachine
from luthier.tasks.base import TASKS, Task
from luthier.training.settings import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from luthier.planning.plan import Plan

ARMS = (
    "lora",
    "full",
    "freeze",
    "houlsby",
    "pfeiffer",
    "parallel_adapter",
    "scaled_parallel",
    "bitfit",
    "ia3",
    "qlora",
    "lora_int8",
    "rslora",
    "lora_plus",
    "dora",
    "adalora",
    "pissa",
    "vera",
    "oft",
    "prefix",
    "p_tuning_v2",
    "prompt",
    "p_tuning",
    "mam",
    "unipelt",
)
"""What is looked at. Where nothing else tells two apart, the one named first here comes first: it has less to set."""

PASS = 512
"""Tokens of a pass that is planned, or those of the longest row: small, so that what fits at all is seen to fit."""

SAME_TRACE = ("alpha", "rslora", "lr_ratio", "init", "dropout")
"""Fields of LoRA that change neither memory nor time."""


@dataclass(frozen=True, slots=True)
class Base:
    """The base as a run would load it, and what is known of it without weights."""

    model: ModelConfig
    source: str
    labels: tuple[str, ...] | None
    precision: str
    limit: int
    """Longest row in tokens."""
    layers: int | None = None
    """Of the base, where they can be cut."""
    other: TargetMachine | None = None
    """Where it is to run, if not here."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method at its defaults on a base in some quantization."""

    arm: str
    """As benchmarks call it."""
    method: Method
    quantize: str
    train: TrainConfig
    trained: int
    """Parameters."""
    parameters: int
    """Of base and method together."""
    file_bytes: int
    """Of what a run leaves: an adapter, or a whole model."""
    fewest: int
    """Bytes of memory that it takes at least, without activations."""
    plan: Plan | None = None
    checkpointing: bool = False
    why: str = ""
    """What stood in the way of a plan."""

    @property
    def name(self) -> str:
        """The arm, and the quantization where that is not told by it."""
        return self.arm if self.arm in QUANTIZED or self.quantize == "none" else f"{self.arm} on {self.quantize}"

    @property
    def whole(self) -> bool:
        """A run leaves a whole model, not an adapter."""
        return self.method.saves == "model"

    @property
    def settings(self) -> list[str]:
        """What a recipe would say, as key=value beside --method."""
        said = [] if self.arm in QUANTIZED or self.quantize == "none" else [f"model.quantize={self.quantize}"]
        return said + (["train.gradient_checkpointing=true"] if self.checkpointing else [])


def named(method: Method) -> str:
    """What benchmarks call it: `dora` for a LoRA with dora, else the method's own name."""
    for name, (file, fields) in METHODS.presets.items():
        if file == method.name and fields and all(getattr(method, key) == value for key, value in fields.items()):
            return name
    return method.name


def traced(method: Method) -> Method:
    """The method with a start that needs no weights."""
    skeletal = getattr(method, "skeletal", None)
    return skeletal() if skeletal is not None else method


def file_bytes(method: Method, tuned: nn.Module) -> int:
    """Bytes of weights that a run leaves, from shapes alone."""
    if method.saves == "model":
        return int(sum({id(p): p.numel() * p.element_size() for p in tuned.parameters()}.values()))
    if method.name in ("prompt", "p_tuning"):  # the encoder is dropped; asking for the prompt would run it
        prompts: Any = tuned
        length = method.positions * prompts.peft_config["default"].token_dim
        return int(4 * length) + _head_bytes(tuned)
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    factor: float = 1.0
    if method.name == "adalora":  # ranks that were pruned are not saved
        target, start = (int(getattr(method, key)) for key in ("target_rank", "rank"))
        factor = target / start
    if getattr(method, "init", "") == "pissa":  # kept as a plain LoRA of twice the rank
        factor = 2.0
    return int(sum(t.numel() * t.element_size() * (factor if "lora_" in key else 1.0) for key, t in state.items()))


def _head_bytes(tuned: nn.Module) -> int:
    from luthier.models.heads import in_head

    return sum(
        p.numel() * p.element_size() for name, p in tuned.named_parameters() if p.requires_grad and in_head(name)
    )


class Planner:
    """Makes candidates and plans them; what differs in nothing that counts is made once."""

    def __init__(
        self, base: Base, facts: Facts, train: TrainConfig, task: Task | None, seed: int, own: Method | None
    ) -> None:
        self.base, self.facts, self.train, self.seed, self.own = base, facts, train, seed, own
        self.task = task or TASKS.parse("classify" if base.labels is not None else "chat")
        self.tuned: dict[str, Any] = {}
        self.resolved: dict[str, Any] = {}

    def method(self, arm: str) -> Method:
        """The arm at its defaults, or as the recipe has it."""
        return self.own if self.own is not None and named(self.own) == arm else METHODS.parse(arm)

    def model(self, arm: str, quantize: str | None = None) -> ModelConfig:
        """The base, packed as the arm or `quantize` says."""
        packed, _ = QUANTIZED.get(arm, ("none", None))
        return self.base.model.model_copy(update={"quantize": quantize or packed})

    def check(self, arm: str, quantize: str | None = None) -> None:
        """InputError where the arm cannot serve on this base or machine. Two layers are enough to tell."""
        from luthier.models.load import check_quantize, quantization, skeleton

        base, model = self.base, self.model(arm, quantize)
        if base.other is None:
            check_quantize(model, self._train(arm).optimizer)
        some = skeleton(model, base.source, labels=base.labels, layers=self.base.layers and min(self.base.layers, 2))
        stored = quantization(model, some.config)
        self.method(arm).check(some, classify=base.labels is not None, quantize=stored)

    def candidate(self, arm: str, quantize: str | None = None) -> Candidate:
        """The arm with its sizes."""
        from luthier.models.load import parameter_counts
        from luthier.planning.plan import fewest

        method, model, train = self.method(arm), self.model(arm, quantize), self._train(arm)
        tuned = self._tuned(method)
        trained, parameters = parameter_counts(tuned)
        left = tuned
        if method.name == "prefix":  # what is left without its network is what P-Tuning v2 trains
            left = self._tuned(METHODS.parse({"name": "p_tuning_v2", "length": getattr(method, "length")}))  # noqa: B009
        size = file_bytes(method, left)
        return Candidate(arm, method, model.quantize, train, trained, parameters, size, fewest(tuned, model, train))

    def packed(self, one: Candidate) -> Candidate | None:
        """The same method on a base in 4 bit, where that is no candidate already and can be."""
        if one.quantize != "none" or arm_of(one.arm, "nf4") != one.arm or not one.method.quantized_base:
            return None
        try:
            self.check(one.arm, "nf4")
        except InputError:
            return None
        return self.candidate(one.arm, "nf4")

    def _train(self, arm: str) -> TrainConfig:
        _, optimizer = QUANTIZED.get(arm, ("none", None))
        if optimizer and "optimizer" not in self.train.model_fields_set:
            return self.train.model_copy(update={"optimizer": optimizer})
        return self.train

    def _tuned(self, method: Method) -> Any:
        """The whole base with the method, on the meta device."""
        from luthier.models.load import skeleton

        key = shape_key(method)
        if key not in self.tuned:
            model = self.base.model.model_copy(update={"quantize": "none"})
            whole = skeleton(model, self.base.source, labels=self.base.labels)
            self.tuned[key] = traced(method).attach(whole, steps=1000, classify=self.base.labels is not None)
        return self.tuned[key]

    def planned(self, one: Candidate) -> Candidate:
        """`one` with memory and time of a standard run: the recipe's train block, what it leaves open decided."""
        from luthier.planning.plan import OPTIMIZER
        from luthier.planning.resolve import resolve

        key = f"{shape_key(one.method)} {one.quantize} {OPTIMIZER[one.train.optimizer]}"
        if key not in self.resolved:
            self.resolved[key] = resolve(self._job(one))
        resolved = self.resolved[key]
        made_twice = resolved.train.gradient_checkpointing is True
        return replace(one, plan=resolved.plan, checkpointing=made_twice, why=resolved.why)

    def _job(self, one: Candidate) -> Any:
        from luthier.planning.resolve import PlanInputs
        from luthier.training.settings import total_steps

        base, facts, train = self.base, self.facts, one.train
        if base.other is not None and train.packing == "auto":  # whether that GPU packs is not known: rows are padded
            train = train.model_copy(update={"packing": False})
        most = base.limit - one.method.positions
        lengths: Sequence[int] = [min(length, most) for length in facts.lengths]
        if train.micro_tokens is None and train.micro_batch is None:  # the same pass for all, so that they compare
            train = train.model_copy(update={"micro_tokens": max(PASS, *lengths)})
        return PlanInputs(
            base.model.model_copy(update={"quantize": one.quantize}),
            traced(one.method),
            train,
            self.task,
            base.source,
            lengths,
            facts.learned,
            total_steps(train, facts.rows),
            base.precision,
            base.labels,
            self.seed,
            base.other,
        )


def shape_key(method: Method) -> str:
    """The same for methods whose tensors have the same shapes."""
    return str({k: v for k, v in method.spec().items() if method.name != "lora" or k not in SAME_TRACE})
