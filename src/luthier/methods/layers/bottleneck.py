"""Bottleneck adapters: delta(u) = s * (W_up f(W_down u + b_down) + b_up), in four places.

    houlsby   after attention and after the feed-forward, on each sub-layer's output (1902.00751, section 2.1)
    pfeiffer  after the feed-forward, on output and residual together (2005.00052, section 3)
    output    after the feed-forward, on its output alone (Pfeiffer's place, Houlsby's form)
    parallel  beside the feed-forward, on its input (2110.04366, section 3.3)

In a post-norm layer (BERT) the feed-forward's input and the residual stream are the same. In a pre-norm
layer (Llama) they are not; the reference code of 2110.04366 and AdapterHub take the residual stream
before the norm, and so do we (`reads="residual"`); `reads="input"` takes the normed input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from luthier.methods.layers.base import Tuner, TunerConfig, TunerLayer, pooled_gate
from luthier.methods.layers.module_map import Sites
from luthier.methods.layers.registry import peft_type, register


@dataclass
class BottleneckConfig(TunerConfig):
    """Place, width and start of a bottleneck."""

    place: str = field(default="houlsby", metadata={"help": "houlsby, pfeiffer, output or parallel."})
    size: int = field(default=64, metadata={"help": "Width of the bottleneck."})
    activation: str = field(default="relu", metadata={"help": "A name of transformers' ACT2FN."})
    scale: float = field(default=1.0, metadata={"help": "Factor on the delta."})
    learned_scale: bool = field(default=False, metadata={"help": "Train the factor, from `scale`."})
    dropout: float = field(default=0.0, metadata={"help": "Share of the delta dropped in training."})
    init: str = field(default="zero", metadata={"help": "zero: Kaiming down, zero up; normal: both N(0, 0.02)."})
    reads: str = field(default="residual", metadata={"help": "Input in pre-norm layers: residual or input."})
    gate: str = field(default="none", metadata={"help": "none, mean (over the sequence) or token."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type("BOTTLENECK")


class Bottleneck(TunerLayer):
    """The delta itself; subclasses say what it reads and where it is added."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter: str,
        config: Any,
        *,
        parent: nn.Module,
        namespace: str,
        hidden: int,
        norm: str = "",
        place: str,
    ) -> None:
        super().__init__()
        self.base_layer, self.hidden = base_layer, hidden
        self._hold(namespace, adapter, parent, modules=("down", "up", "gate"), parameters=("scale",))
        self.watch(parent, norm)
        self.update_layer(adapter, config, place=place)

    def watch(self, parent: nn.Module, norm: str) -> None:
        """Hook what the layer must see beside its own input."""

    def update_layer(self, adapter: str, config: Any, *, place: str, **_: Any) -> None:
        down, up = nn.Linear(self.hidden, config.size), nn.Linear(config.size, self.hidden)
        for linear in (down, up):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if config.init == "zero":  # as LoRA: the first step starts from the base exactly
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(up.weight)
        self.held("down")[adapter], self.held("up")[adapter] = down, up
        if config.gate != "none":
            gate = nn.Linear(self.hidden, 1)
            nn.init.normal_(gate.weight, std=0.02)
            self.held("gate")[adapter] = gate
        if config.learned_scale:
            self.held("scale")[adapter] = nn.Parameter(torch.full((1,), float(config.scale)))
        self.settings[adapter] = {
            "activation": ACT2FN[config.activation],
            "dropout": config.dropout,
            "gate": config.gate,
            "scale": config.scale,
            "place": place,
            "reads": config.reads,
        }
        self._placed(adapter, config)

    def delta(self, name: str, u: Tensor) -> Tensor:
        """[..., H] -> [..., H], in the input's dtype."""
        settings, down = self.settings[name], self.held("down")[name]
        x = u.to(down.weight.dtype)
        h = self.held("up")[name](settings["activation"](down(x)))
        h = h * (self.held("scale")[name] if name in self.held("scale") else settings["scale"])
        h = nn.functional.dropout(h, settings["dropout"], self.training)
        if name in self.held("gate"):
            h = h * pooled_gate(self.held("gate")[name], x, settings["gate"])
        return h.to(u.dtype)


class AfterOutput(Bottleneck):
    """Around the module that ends a sub-layer: h -> h + delta(h)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        h: Tensor = self.base_layer(x, *args, **kwargs)
        for name in self.live("down"):
            h = h + self.delta(name, h)
        return h


class AroundBlock(Bottleneck):
    """Around the feed-forward block of a pre-norm layer, r being the residual stream that enters its norm.

    parallel: h = ffn(x) + delta(r or x); pfeiffer: h = ffn(x), h + delta(h + r).
    """

    def watch(self, parent: nn.Module, norm: str) -> None:
        self.residual: Any = None
        self.handle = getattr(parent, norm).register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.residual = args[0]

    def detach_hooks(self) -> None:
        self.handle.remove()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        residual, self.residual = self.residual, None
        h: Tensor = self.base_layer(x, *args, **kwargs)
        for name in self.live("down"):
            settings = self.settings[name]
            if settings["place"] == "pfeiffer":
                h = h + self.delta(name, h + residual)
            else:
                h = h + self.delta(name, residual if settings["reads"] == "residual" and residual is not None else x)
        return h


class AroundBertOutput(Bottleneck):
    """Around BertOutput(hidden, x) = norm(dropout(dense(hidden)) + x), x being the feed-forward's input.

    parallel: norm(h + x + delta(x)); pfeiffer: u = norm(h + x), norm(h + delta(u) + x), as AdapterHub has it.
    """

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        names = list(self.live("down"))
        beside = [name for name in names if self.settings[name]["place"] == "parallel"]
        after = [name for name in names if self.settings[name]["place"] == "pfeiffer"]
        residual = input_tensor
        for name in beside:
            residual = residual + self.delta(name, input_tensor)
        if not after:
            return self.base_layer(hidden_states, residual)  # type: ignore[no-any-return]
        base: Any = self.get_base_layer()
        h = base.dropout(base.dense(hidden_states))
        for name in after:
            h = h + self.delta(name, base.LayerNorm(h + input_tensor))
        return base.LayerNorm(h + residual)  # type: ignore[no-any-return]


def bottleneck_places(place: str, sites: Sites) -> dict[str, str]:
    """Kind of layer -> modules it goes to. Raises ValueError for an unknown place."""
    match place:
        case "houlsby":
            return {"attention_out": sites.attention_out, "ffn_out": sites.ffn_out}
        case "output":
            return {"ffn_out": sites.ffn_out}
        case "pfeiffer" | "parallel":
            return {"ffn": sites.ffn}
    raise ValueError(f"unknown place {place!r}: houlsby, pfeiffer, output or parallel")


def put_bottleneck(
    tuner: Tuner, kind: str, config: Any, adapter: str, target: nn.Module, name: str, parent: nn.Module
) -> None:
    """Wrap `target` with the bottleneck for its kind of place."""
    layer: type[Bottleneck] = AfterOutput
    if kind == "ffn":
        layer = AroundBertOutput if tuner.sites.ffn_call == "bert_output" else AroundBlock
    hidden = tuner.model.config.hidden_size
    tuner.wrap(
        layer, config, adapter, target, name, parent, hidden=hidden, norm=tuner.sites.ffn_norm, place=config.place
    )


class BottleneckModel(Tuner):
    """PEFT's view of the bottleneck adapters."""

    prefix = "bottleneck_"

    def places(self, config: BottleneckConfig, sites: Sites) -> dict[str, str]:
        return bottleneck_places(config.place, sites)

    def inject(self, kind: str, config: Any, adapter: str, target: nn.Module, name: str, parent: nn.Module) -> None:
        put_bottleneck(self, kind, config, adapter, target, name, parent)


register("BOTTLENECK", BottleneckConfig, BottleneckModel)
