"""LoRA: learn a low-rank update of frozen weights.

Hu et al. 2021, arXiv 2106.09685, section 4.1. For a frozen weight W: [out, in],

    y = x W^T + (alpha / rank) dropout(x) A^T B^T      A: [rank, in], B: [out, rank]

A starts as Kaiming-uniform noise and B as zero, so training starts from the base model exactly. Trainable parameters:
rank * (in + out) per adapted layer. After training the update folds into W. Layers and file format are PEFT's.

Its kin are fields: `rslora` divides alpha by sqrt(rank) (2312.03732); `dora` trains direction and magnitude apart,
W' = m (W + BA) / ||W + BA||, one number more per output (2402.09353); `lr_ratio` gives B a higher learning rate than A
(LoRA+, 2402.12354). With `model.quantize: nf4` it is QLoRA (2305.14314).

`init` says where A and B start. From the weights: `pissa` the largest singular directions of W (2404.02948), `olora`
those of its QR decomposition (2406.01775). From training rows: `eva` the main directions of a layer's inputs
(2410.07170), `corda` those of W that these inputs use (2406.05223), `lora_ga` those of the gradient of W (2407.05000).
`loftq` makes up for what quantizing loses (2310.08659). `gaussian` and `orthogonal` are other noise. What a start takes
out of W goes back when the adapter is saved, as a plain LoRA of twice the rank on the untouched base.

Experts held as one tensor get an A and a B each. PEFT adds B A to the whole tensor in every pass, which takes the
memory of that tensor once more in each layer; gradient checkpointing keeps it to one layer.

When: the first choice for decoders, and wherever the result should merge or many variants share a base. When not: very
few parameters are wanted (vera, bitfit), or the rank should move between layers (adalora).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from luthier.core.errors import InputError
from luthier.core.registry import Share, Size
from luthier.methods.base import TARGET_ALIASES, Context, Model, State, TargetedMethod
from luthier.models.targets import block_of, check_rank, check_targets, expert_tensors, read_as_experts

STARTS = {**dict.fromkeys(("pissa", "olora", "orthogonal"), "from_weights"), "loftq": "from_files"}
"""Start of A and B that needs no rows -> function of `methods.layers.lora_start` that makes it."""
FROM_ROWS = ("eva", "corda", "lora_ga")
START = "start."
"""Before the name of a weight in a checkpoint: what it was when rows had been looked at."""
TAKEN_OUT = ("pissa", "olora", "corda", "lora_ga")
"""Starts that are taken out of the base's weights."""


class LoRA(TargetedMethod):
    """Low-rank updates of chosen linear layers."""

    paper, typical_share = "2106.09685", 0.0175
    family = "reparametrization"
    suggested_lr, suggested_lr_encoder = 3e-4, 5e-4
    aliases: ClassVar = {
        **TARGET_ALIASES,
        **dict.fromkeys(("r", "lora_r", "lora_rank"), "rank"),
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "lora_target": "targets",
        "use_rslora": "rslora",
        "use_dora": "dora",
        "loraplus_lr_ratio": "lr_ratio",
        "init_lora_weights": "init",
    }

    rank: Size = 16
    """Rank of the update, in each expert too: more rank, more capacity, memory and adapter bytes."""
    alpha: PositiveFloat = 32.0
    """Strength of the update, which is scaled by alpha / rank."""
    dropout: Share = 0.0
    """Share of the inputs of A dropped during training; 0.05 to 0.1 helps on small data sets."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Also train bias terms: of no layer, of every layer, or of the adapted ones. The base then cannot be had back."""
    experts: Literal["auto"] | bool = "auto"
    """Adapt experts held as one tensor too; auto: with all-linear, unless dropout or dora, which exclude it."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps large ranks learning (arXiv 2312.03732)."""
    dora: bool = False
    """Train the magnitude of each output apart from its direction (arXiv 2402.09353)."""
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva", "corda", "lora_ga", "loftq"] = "default"
    """Start of A and B: noise and zero, or another (`luthier explain method lora`). Experts start as default."""
    start_rows: Size = 64
    """Training rows that the starts eva, corda and lora_ga look at."""
    lr_ratio: Annotated[float, Field(ge=1)] = 1.0
    """Learning rate of B over that of A: LoRA+ takes 16, with a lower train.lr (arXiv 2402.12354)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.experts is True and self._not_on_experts:
            raise ValueError(f"experts=true needs {self._not_on_experts}: PEFT has no such LoRA for experts")
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init=orthogonal needs an even rank, not {self.rank}")
        return self

    @property
    def _not_on_experts(self) -> str:
        """The setting that PEFT's LoRA of whole tensors wants to be otherwise, or empty."""
        return "dropout=0" if self.dropout else "dora=false" if self.dora else ""

    @property
    def elsewhere(self) -> str:
        own = f"method.{self._not_on_experts}" if self._not_on_experts else "method.experts=auto"
        return f"{own} adapts experts too, method=full trains them"

    def taken(self, model: Model) -> frozenset[str]:
        return read_as_experts(model)

    def parameters(self, model: Model) -> list[str]:
        """Experts held as whole tensors, and plain layers that PEFT would take for those: their weights are tensors."""
        every = isinstance(self.targets, str)
        if not (self.experts is True or (self.experts == "auto" and every)) or self._not_on_experts:
            return []
        from luthier.kernels.frozen_linear import is_packed

        names = list(expert_tensors(model))
        if every and (taken := self.taken(model)):
            layers = check_targets(model, self.targets)
            beside = {n: layer for n, layer in layers.items() if n.rpartition(".")[2] in taken}
            names += [f"{name}.weight" for name, layer in beside.items() if not is_packed(layer)]
        return [name for name in names if not self.layers or block_of(name) in self.layers]

    def check_layers(self, layers: State) -> None:
        check_rank(layers, self.rank)
        if self.init == "lora_ga":  # B's directions come behind A's
            linear = {name: layer for name, layer in layers.items() if hasattr(layer, "weight")}
            check_rank(linear, 2 * self.rank, lambda most: f"method.rank={most // 2}: lora_ga takes twice the rank")

    def check(self, model: Model, *, classify: bool = False, quantize: str = "none", steps: int = 1000) -> Model:
        if self.init in TAKEN_OUT and quantize != "none":
            message = f"method.init={self.init} needs the unpacked weights of the base, and model.quantize packs them"
            raise InputError(message, fix="method.init=default, or model.quantize=none")
        if self.init == "loftq" and quantize == "none":
            message = "method.init=loftq makes up for what quantizing loses, and model.quantize=none loses nothing"
            raise InputError(message, fix="model.quantize=nf4, or method.init=default")
        if self.init == "loftq":
            from luthier.methods.layers.lora_start import files_of

            linear = check_targets(model, self.targets, self.layers, self.taken(model))
            files_of(model, [f"{name}.weight" for name in linear])
        if quantize != "none" and self.bias != "none":
            why = "quantized layers cast theirs to the type they compute in, where small updates are lost"
            message = f"method.bias={self.bias} trains the base's own biases, and {why}"
            raise InputError(message, fix="method.bias=none, or model.quantize=none")
        if self.experts is True and not expert_tensors(model):
            message = "method.experts=true: this model has no experts held as whole tensors"
            raise InputError(message, fix="method.experts=auto")
        return super().check(model, classify=classify, quantize=quantize, steps=steps)

    def peft_config(self, model: Model, steps: int) -> Any:
        from peft import LoraConfig

        size: dict[str, Any] = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        kind: dict[str, Any] = {"bias": self.bias, "use_rslora": self.rslora, "use_dora": self.dora}
        kind["init_lora_weights"] = "gaussian" if self.init == "gaussian" else True
        kind["target_parameters"] = sorted(self.parameters(model)) or None
        return LoraConfig(target_modules=self.target_modules(model), **size, **kind)

    def attach(self, model: Model, *, steps: int, classify: bool = False) -> Model:
        half = {p.dtype for n, p in model.named_parameters() if n.endswith("bias") and p.dtype.itemsize < 4}
        if self.bias != "none" and half and next(model.parameters()).device.type != "meta":
            where = f"they are {half.pop()} here, where small updates are lost"
            message = f"method.bias={self.bias} trains the base's own biases; {where}"
            raise InputError(message, fix="method.bias=none, or model.dtype=float32")
        untrained = self._own_biases(model)
        tuned = super().attach(model, steps=steps, classify=classify)
        tuned.untrained = untrained
        if next(model.parameters()).device.type != "meta" and self.init in STARTS:
            from luthier.methods.layers import lora_start

            getattr(lora_start, STARTS[self.init])(tuned, self.init, self.rank)
            self._take_out(tuned)
        return tuned

    @property
    def starts_from(self) -> int:
        return self.start_rows if self.init in FROM_ROWS else 0

    def begin(self, model: Model, losses: Iterable[Callable[[Model], Any]]) -> None:
        from luthier.methods.layers.lora_start import from_rows

        if self.starts_from:
            from_rows(model, self.init, self.rank, losses)
            self._take_out(model)

    def _take_out(self, model: Model) -> None:
        """Take the start of A and B out of the base, and keep it: to be put back to have the base again."""
        from luthier.methods.layers.lora_start import adapted, take_out

        if self.init not in TAKEN_OUT:
            return
        for layer in adapted(model).values():
            take_out(layer)
        model.peft_config["default"].init_lora_weights = self.init
        pairs = model.named_parameters()
        model.lora_start = {n: p.detach().clone() for n, p in pairs if ".lora_A." in n or ".lora_B." in n}

    def guard(self, model: Model) -> None:
        model.add_adapter = MethodType(_add_beside, model)

    def learning_rate(self, model: Model) -> float:
        lr = super().learning_rate(model) / self.lr_ratio**0.75  # for 16: B at twice the rate of LoRA, A at an eighth
        if self.init == "pissa":  # A and B start large, and steps move the base's main directions
            lr /= 4
        if self.rslora:  # its scale is sqrt(rank) times LoRA's and multiplies each step
            lr /= self.rank**0.25
        return float(f"{lr:.2g}")

    def lr_ratio_of(self, model: Model, name: str) -> float:
        return self.lr_ratio if ".lora_B." in name else 1.0

    def disabled(self, model: Model) -> Context | None:
        if self.bias != "none":  # biases train in place, so the base is no longer there
            return None
        if hasattr(model, "lora_start"):
            return _swapped(model)
        from luthier.methods.layers.loading import moves_base

        return None if moves_base(vars(model.peft_config["default"])) else super().disabled(model)

    def load(self, model: Model, folder: Path) -> Model:
        untrained = self._own_biases(model)
        tuned = super().load(model, folder)
        tuned.untrained = untrained
        return tuned

    def training_state(self, model: Model) -> State:
        state = super().training_state(model)
        if self.starts_from and hasattr(model, "lora_start"):
            state |= {f"{START}{name}": value for name, value in model.lora_start.items()}
        return state

    def load_training_state(self, model: Model, state: State, file: Path) -> None:
        start = {name.removeprefix(START): state.pop(name) for name in list(state) if name.startswith(START)}
        if start and not hasattr(model, "lora_start"):
            from luthier.methods.layers.loading import copy_same

            copy_same(start, {n: p for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n}, file)
            self._take_out(model)
        super().load_training_state(model, state, file)

    def _own_biases(self, model: Model) -> list[tuple[Any, Any]]:
        """The base's own biases and what they hold, where they train in place."""
        own = [p for n, p in model.named_parameters() if n.endswith("bias") and self.bias != "none"]
        return [(p, p.detach().clone()) for p in own]

    def give_back(self, model: Model) -> None:
        for parameter, value in getattr(model, "untrained", []):
            parameter.data.copy_(value)
        if hasattr(model, "lora_start"):
            with _swapped(model):
                model.base_model.merge_adapter()
            for module in model.modules():  # else PEFT would take it off again
                if getattr(module, "merged_adapters", None):
                    module.merged_adapters = []

    def as_saved(self, model: Model) -> tuple[State | None, dict[str, Any]]:
        """As a plain LoRA of twice the rank on the untouched base: B A - B0 A0 = [B, B0] [A; -A0]."""
        if not hasattr(model, "lora_start"):
            return None, {}
        import torch

        state = model.state_dict()
        for name, old in model.lora_start.items():
            layer = model.get_submodule(name.partition(".lora_")[0])
            experts, down = getattr(layer, "num_experts", 1), ".lora_A." in name
            shape = (experts, -1, old.shape[1]) if down else (len(old), -1, experts)  # the rank is in the middle
            both = [t.reshape(shape) for t in (state[name], -old if down else old)]
            state[name] = torch.cat(both, dim=1).flatten(0, 1) if down else torch.cat(both, dim=1).flatten(1)
        grown = 2.0**0.5 if self.rslora else 2.0  # the scale, alpha / r or alpha / sqrt(r), must stay
        return state, {"r": 2 * self.rank, "lora_alpha": self.alpha * grown, "init_lora_weights": True}


def _add_beside(model: Any, adapter_name: str, peft_config: Any, *args: Any, **kwargs: Any) -> None:
    """PEFT's `add_adapter`, but InputError where one adapter changes the base of the other."""
    configs = {**model.peft_config, adapter_name: peft_config}
    biases = [name for name, config in configs.items() if getattr(config, "bias", "none") != "none"]
    starts = TAKEN_OUT
    moved = [n for n, c in configs.items() if str(getattr(c, "init_lora_weights", "")).lower().startswith(starts)]
    if biases or moved:
        why = "trains the base's own biases" if biases else "took its start out of the base's weights"
        fix = "" if biases else ", or save the finished adapter and load it: it is kept as a plain LoRA"
        message = f"adapter {adapter_name!r} cannot stand beside the others: {(biases or moved)[0]!r} {why}"
        raise InputError(message, fix=f"a copy of the base for each{fix}")
    type(model).add_adapter(model, adapter_name, peft_config, *args, **kwargs)


@contextmanager
def _swapped(model: Any) -> Iterator[None]:
    """Within it, A and B are what they were at the start, which is the base."""
    from luthier.methods.layers.base import untrained_heads

    own = dict(model.named_parameters())
    trained = {name: own[name].data for name in model.lora_start}
    for name, start in model.lora_start.items():
        own[name].data = start.to(own[name])
    try:
        with untrained_heads(model):
            yield
    finally:
        for name, value in trained.items():
            own[name].data = value
