"""Every method that can serve a task on a base, with its file size, memory and training time."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from luthier.core.errors import InputError
from luthier.methods.base import METHODS, PRESETS, QUANTIZED, Method
from luthier.methods.lora import TAKEN_OUT
from luthier.models.load import check_quantize, parameter_counts
from luthier.models.settings import ModelConfig
from luthier.models.targets import in_head
from luthier.planning.advisor.evidence import repository
from luthier.planning.plan import Plan, PlanInputs, held_bytes, tuned_skeleton
from luthier.planning.resolve import ResolvedSettings, resolve
from luthier.training.optimizers.base import OPTIMIZERS
from luthier.training.settings import TrainConfig

_NAMES = """
lora full freeze houlsby pfeiffer parallel_adapter scaled_parallel bitfit ia3 qlora lora_int8 rslora lora_plus dora
adalora pissa vera oft prefix p_tuning_v2 prompt p_tuning mam unipelt layernorm lokr loha
"""
NAMES = tuple(name for name in _NAMES.split() if any(name in board.scores for board in repository().values()))
"""Methods and presets that are considered: those that were measured here.

Of two that are equal the one listed first wins: it has less to set.
"""

PASS = 512
"""Tokens of a planned pass, or those of the longest row if more: small, so that what fits at all counts as fitting."""

SAME_SHAPES = ("alpha", "rslora", "lr_ratio", "init", "dropout")
"""Fields of LoRA that change neither memory nor time."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method at its defaults on a base in some quantization."""

    preset: str
    """The method's or preset's name, as benchmarks list it."""
    method: Method
    quantize: str
    trained: int
    """Trainable parameters."""
    parameters: int
    """Parameters of base and method together."""
    file_bytes: int
    """Bytes of what a run leaves: an adapter, or a whole model."""
    fewest: int
    """Least bytes of memory, without activations (see `held_bytes`)."""
    plan: Plan | None = None
    checkpointing: bool = False
    why: str = ""
    """Why there is no plan."""

    @property
    def name(self) -> str:
        """The preset, and the quantization where the preset does not imply it."""
        implied = self.preset in QUANTIZED or self.quantize == "none"
        return self.preset if implied else f"{self.preset} on {self.quantize}"

    @property
    def whole(self) -> bool:
        """Whether a run leaves a whole model, not an adapter."""
        return self.method.saves == "model"

    @property
    def settings(self) -> list[str]:
        """The key=value settings beside --method."""
        settings = [f"model.quantize={self.quantize}"] if self.name != self.preset else []
        return settings + (["train.gradient_checkpointing=true"] if self.checkpointing else [])


def preset_of(method: Method, quantize: str) -> str:
    """The name of a method in benchmarks: `dora` for a LoRA with dora, `qlora` for a LoRA on nf4, else its own name."""
    for name, (own, fields) in PRESETS.items():
        fits = bool(fields) or QUANTIZED[name][0] == quantize  # a preset without fields is a quantized base
        if fits and own == method.name and all(getattr(method, key) == value for key, value in fields.items()):
            return name
    return method.name


def file_bytes(method: Method, tuned: nn.Module) -> int:
    """Bytes of the weights that a run leaves, from shapes alone."""
    if method.saves == "model":
        return _bytes(tuned.parameters())
    if method.name in ("prompt", "p_tuning"):  # the encoder is dropped; asking for the prompt would run it
        prompts: Any = tuned
        head = (p for name, p in tuned.named_parameters() if p.requires_grad and in_head(name))
        return int(4 * method.positions * prompts.peft_config["default"].token_dim) + _bytes(head)
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    factor = 1.0
    if method.name == "adalora":  # ranks that were pruned are not saved
        factor = getattr(method, "target_rank") / getattr(method, "rank")  # noqa: B009
    if getattr(method, "init", "") in TAKEN_OUT:  # kept as a plain LoRA of twice the rank
        factor = 2.0
    return int(sum(_bytes([t]) * (factor if "lora_" in key else 1.0) for key, t in state.items()))


def _bytes(tensors: Iterable[Any]) -> int:
    return int(sum({id(t): t.numel() * t.element_size() for t in tensors}.values()))


def shape_key(method: Method) -> str:
    """A key that is equal for methods whose tensors have the same shapes."""
    return str({k: v for k, v in method.spec().items() if method.name != "lora" or k not in SAME_SHAPES})


class Planner:
    """Builds candidates and plans them; candidates with the same shapes are planned once."""

    def __init__(self, base: PlanInputs, limit: int) -> None:
        """`base` has the recipe's method, or lora, but not on it yet; `limit` is the longest row in tokens."""
        self.base, self.limit = base, limit
        self.tuned: dict[str, Any] = {}
        self.resolved: dict[str, ResolvedSettings] = {}

    def method(self, preset: str) -> Method:
        """The method at its defaults, or with the recipe's settings."""
        own = self.base.method
        return own if preset_of(own, "none") == preset else METHODS.parse(preset)

    def check(self, preset: str, quantize: str | None = None) -> None:
        """InputError where a method cannot serve on this base or machine. Two layers are enough for the check."""
        base, (model, train) = self.base, self._settings(preset, quantize)
        if base.other is None:
            check_quantize(model)
            OPTIMIZERS.parse(train.optimizer).check(train.optimizer)
        layers = getattr(base.tuned.config, "num_hidden_layers", None)
        some = layers and min(layers, 2)
        tuned_skeleton(model, self.method(preset), base.source, base.labels, base.steps, layers=some)

    def candidate(self, preset: str, quantize: str | None = None) -> Candidate:
        """A method with its sizes."""
        method = self.method(preset)
        model, train = self._settings(preset, quantize)
        tuned = self._tuned(method)
        trained, parameters = parameter_counts(tuned)
        saved = tuned
        if method.name == "prefix":  # without its network it is what P-Tuning v2 trains
            saved = self._tuned(METHODS.parse({"name": "p_tuning_v2", "length": getattr(method, "length")}))  # noqa: B009
        size, least = file_bytes(method, saved), sum(held_bytes(tuned, model, train).values())
        return Candidate(preset, method, model.quantize, trained, parameters, size, least)

    def quantized(self, one: Candidate) -> Candidate | None:
        """The same method on a base in 4 bit, where that is not a candidate already and is possible."""
        if one.quantize != "none" or one.preset == "lora" or not one.method.quantized_base:  # lora in 4 bit is qlora
            return None
        try:
            self.check(one.preset, "nf4")
        except InputError:
            return None
        return self.candidate(one.preset, "nf4")

    def planned(self, one: Candidate) -> Candidate:
        """A candidate with memory and time of a run: the recipe's train block, what it leaves open decided."""
        key = f"{shape_key(one.method)} {one.quantize} {one.fewest}"
        if key not in self.resolved:
            model, train = self._settings(one.preset, one.quantize)
            changes = dict[str, Any]()
            if self.base.other is not None and train.packing == "auto":  # unknown for that GPU: rows are padded
                changes["packing"] = False
            lengths = [min(length, self.limit - one.method.positions) for length in self.base.lengths]
            if train.micro_tokens is None and train.micro_batch is None:  # the same pass for all, so that they compare
                changes["micro_tokens"] = max(PASS, *lengths)
            train, tuned = train.model_copy(update=changes), self._tuned(one.method)
            inputs = replace(self.base, model=model, method=one.method, train=train, tuned=tuned, lengths=lengths)
            self.resolved[key] = resolve(inputs)
        resolved = self.resolved[key]
        checkpointing = resolved.train.gradient_checkpointing is True
        return replace(one, plan=resolved.plan, checkpointing=checkpointing, why=resolved.why)

    def _settings(self, preset: str, quantize: str | None) -> tuple[ModelConfig, TrainConfig]:
        """The base, quantized as the preset or `quantize` says, and the train block with the preset's optimizer."""
        own, optimizer = QUANTIZED.get(preset, ("none", None))
        model, train = self.base.model.model_copy(update={"quantize": quantize or own}), self.base.train
        if optimizer and "optimizer" not in train.model_fields_set:
            train = train.model_copy(update={"optimizer": optimizer})
        return model, train

    def _tuned(self, method: Method) -> Any:
        """The whole base with the method, on the meta device."""
        key = shape_key(method)
        if key not in self.tuned:
            model = self.base.model.model_copy(update={"quantize": "none"})
            self.tuned[key] = tuned_skeleton(model, method, self.base.source, self.base.labels, self.base.steps)
        return self.tuned[key]
