"""LoRA: learn a low-rank update of frozen weights.

Hu et al. 2021, arXiv 2106.09685, section 4.1. For a frozen weight W: [out, in],

    y = x W^T + (alpha / rank) dropout(x) A^T B^T      A: [rank, in], B: [out, rank]

A starts as Kaiming-uniform noise and B as zero, so training starts from the base model exactly. Trainable parameters:
rank * (in + out) per adapted layer. After training the update folds into W. Layers and file format are PEFT's.

Its kin are fields: `rslora` divides alpha by sqrt(rank) (2312.03732); `dora` trains direction and magnitude apart,
W' = m (W + BA) / ||W + BA||, one number more per output (2402.09353); `init: pissa` starts from the largest singular
directions of W (2404.02948); `lr_ratio` gives B a higher learning rate than A (LoRA+, 2402.12354). With
`model.quantize: nf4` it is QLoRA (2305.14314).

When: the first choice for decoders, and wherever the result should merge or many variants share a base. When not: very
few parameters are wanted (vera, bitfit), or the rank should move between layers (adalora).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from luthier.core.errors import InputError
from luthier.core.registry import Share, Size
from luthier.methods.base import TARGET_ALIASES, Context, Model, State, TargetedMethod
from luthier.models.targets import check_rank, read_as_experts


class LoRA(TargetedMethod):
    """Low-rank updates of chosen linear layers."""

    paper, typical_share = "2106.09685", 0.0175
    family = "reparametrization"
    suggested_lr, suggested_lr_encoder = 2e-4, 5e-4
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
    """Rank of the update: more rank, more capacity, memory and adapter bytes."""
    alpha: PositiveFloat = 32.0
    """Strength of the update, which is scaled by alpha / rank."""
    dropout: Share = 0.0
    """Share of the inputs of A dropped during training; 0.05 to 0.1 helps on small data sets."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Also train bias terms: of no layer, of every layer, or of the adapted ones. The base then cannot be had back."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps large ranks learning (arXiv 2312.03732)."""
    dora: bool = False
    """Train the magnitude of each output apart from its direction (arXiv 2402.09353)."""
    init: Literal["default", "pissa"] = "default"
    """Start of A and B: noise and zero, or the largest singular directions of W (PiSSA; take alpha = rank)."""
    lr_ratio: Annotated[float, Field(ge=1)] = 1.0
    """Learning rate of B over that of A: LoRA+ takes 16, with a lower train.lr (arXiv 2402.12354)."""

    def taken(self, model: Model) -> frozenset[str]:
        return read_as_experts(model)

    def check_layers(self, layers: State) -> None:
        check_rank(layers, self.rank)

    def check(self, model: Model, *, classify: bool = False, quantize: str = "none", steps: int = 1000) -> Model:
        if self.init == "pissa" and quantize != "none":
            message = "method.init=pissa needs the unpacked weights of the base, and model.quantize packs them"
            raise InputError(message, fix="method.init=default, or model.quantize=none")
        if quantize != "none" and self.bias != "none":
            why = "quantized layers cast theirs to the type they compute in, where small updates are lost"
            message = f"method.bias={self.bias} trains the base's own biases, and {why}"
            raise InputError(message, fix="method.bias=none, or model.quantize=none")
        return super().check(model, classify=classify, quantize=quantize, steps=steps)

    def peft_config(self, model: Model, steps: int) -> Any:
        from peft import LoraConfig

        size: dict[str, Any] = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        kind: dict[str, Any] = {"bias": self.bias, "use_rslora": self.rslora, "use_dora": self.dora}
        without_weights = next(model.parameters()).is_meta
        kind["init_lora_weights"] = True if self.init == "default" or without_weights else "pissa"
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
        if tuned.peft_config["default"].init_lora_weights == "pissa":  # to be taken off again to have the base back
            weights = tuned.named_parameters()
            tuned.pissa_start = {n: p.detach().clone() for n, p in weights if ".lora_A." in n or ".lora_B." in n}
        return tuned

    def guard(self, model: Model) -> None:
        model.add_adapter = MethodType(_add_beside, model)

    def learning_rate(self, model: Model) -> float:
        lr = super().learning_rate(model) / self.lr_ratio**0.75  # for 16: B at twice the rate of LoRA, A at an eighth
        if self.init == "pissa":  # A and B start large, and steps move the base's main directions
            lr /= 4
        if self.rslora:  # its scale is sqrt(rank) times LoRA's and multiplies each step
            lr /= self.rank**0.25
        return float(f"{lr:.2g}")

    def lr_ratio_of(self, name: str) -> float:
        return self.lr_ratio if ".lora_B." in name else 1.0

    def disabled(self, model: Model) -> Context | None:
        if self.bias != "none":  # biases train in place, so the base is no longer there
            return None
        return _swapped(model) if hasattr(model, "pissa_start") else super().disabled(model)

    def load(self, model: Model, folder: Path) -> Model:
        untrained = self._own_biases(model)
        tuned = super().load(model, folder)
        tuned.untrained = untrained
        return tuned

    def _own_biases(self, model: Model) -> list[tuple[Any, Any]]:
        """The base's own biases and what they hold, where they train in place."""
        own = [p for n, p in model.named_parameters() if n.endswith("bias") and self.bias != "none"]
        return [(p, p.detach().clone()) for p in own]

    def give_back(self, model: Model) -> None:
        for parameter, value in getattr(model, "untrained", []):
            parameter.data.copy_(value)
        if hasattr(model, "pissa_start"):
            with _swapped(model):
                model.base_model.merge_adapter()
            for module in model.modules():  # else PEFT would take it off again
                if getattr(module, "merged_adapters", None):
                    module.merged_adapters = []

    def as_saved(self, model: Model) -> tuple[State | None, dict[str, Any]]:
        """PiSSA as a plain LoRA of twice the rank on the untouched base: B A - B0 A0 = [B, B0] [A; -A0]."""
        if not hasattr(model, "pissa_start"):
            return None, {}
        import torch

        state = model.state_dict()
        for name, old in model.pissa_start.items():
            down = ".lora_A." in name
            state[name] = torch.cat([state[name], -old if down else old], dim=0 if down else 1)
        grown = 2.0**0.5 if self.rslora else 2.0  # the scale, alpha / r or alpha / sqrt(r), must stay
        return state, {"r": 2 * self.rank, "lora_alpha": self.alpha * grown, "init_lora_weights": True}


def _add_beside(model: Any, adapter_name: str, peft_config: Any, *args: Any, **kwargs: Any) -> None:
    """PEFT's `add_adapter`, but InputError where one adapter changes the base of the other."""
    configs = {**model.peft_config, adapter_name: peft_config}
    biases = [name for name, config in configs.items() if getattr(config, "bias", "none") != "none"]
    starts = ("pissa", "olora", "corda")
    moved = [n for n, c in configs.items() if str(getattr(c, "init_lora_weights", "")).lower().startswith(starts)]
    if biases or moved:
        why = "trains the base's own biases" if biases else "took its start out of the base's weights"
        fix = "" if biases else ", or save a finished PiSSA and load it: it is kept as a plain LoRA"
        message = f"adapter {adapter_name!r} cannot stand beside the others: {(biases or moved)[0]!r} {why}"
        raise InputError(message, fix=f"a copy of the base for each{fix}")
    type(model).add_adapter(model, adapter_name, peft_config, *args, **kwargs)


@contextmanager
def _swapped(model: Any) -> Iterator[None]:
    """Within it, PiSSA's A and B are what they were at the start, which is the base."""
    from luthier.methods.layers.base import untrained_heads

    own = dict(model.named_parameters())
    trained = {name: own[name].data for name in model.pissa_start}
    for name, start in model.pissa_start.items():
        own[name].data = start.to(own[name])
    try:
        with untrained_heads(model):
            yield
    finally:
        for name, value in trained.items():
            own[name].data = value
