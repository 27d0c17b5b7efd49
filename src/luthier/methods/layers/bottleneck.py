"""Bottleneck adapters: delta(u) = s * (W_up f(W_down u + b_down) + b_up), in four places.

    houlsby   after attention and after the feed-forward, on each sub-layer's output (1902.00751, section 2.1)
    pfeiffer  after the feed-forward, on output and residual together (2005.00052, section 3)
    output    after the feed-forward, on its output alone (Pfeiffer's place, Houlsby's form)
    parallel  beside the feed-forward, on its input (2110.04366, section 3.3)

In a pre-norm layer (Llama) the feed-forward's input is not the residual stream, which the reference code of 2110.04366
and AdapterHub take before the norm, and so do we (`reads="residual"`); `reads="input"` takes the normed input.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from luthier.methods.layers.base import Target, Tuner, TunerConfig, TunerLayer, pooled_gate


@dataclass
class BottleneckConfig(TunerConfig):
    """Target, width and start of a bottleneck."""

    place: str = "houlsby"  # houlsby, pfeiffer, output or parallel
    size: int = 64  # width of the bottleneck
    activation: str = "relu"  # a name of transformers' ACT2FN
    scale: float = 1.0  # factor on the delta
    learned_scale: bool = False  # train the factor, from `scale`
    dropout: float = 0.0  # share of the delta dropped in training
    init: str = "zero"  # zero: Kaiming down, zero up; normal: both N(0, 0.02)
    reads: str = "residual"  # input in pre-norm layers: residual or input
    gate: str = "none"  # none, mean (over the sequence) or token


class Bottleneck(TunerLayer):
    """The delta itself; subclasses say what it reads and where it is added."""

    containers: ClassVar = {**dict.fromkeys(("down", "up", "gate", "act"), nn.ModuleDict), "scale": nn.ParameterDict}

    def fill(self, adapter: str, config: Any) -> None:
        hidden = self.model_config.hidden_size
        down, up = nn.Linear(hidden, config.size), nn.Linear(config.size, hidden)
        for linear in (down, up):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if config.init == "zero":  # as LoRA: the first step starts from the base exactly
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(up.weight)
        self.held("down")[adapter], self.held("up")[adapter] = down, up
        if config.gate != "none":
            self.hold_gate("gate", adapter, hidden)
        if config.learned_scale:
            self.held("scale")[adapter] = nn.Parameter(torch.full((1,), float(config.scale)))
        self.held("act")[adapter] = ACT2FN[config.activation]

    def delta(self, name: str, u: Tensor) -> Tensor:
        """[..., H] -> [..., H], in the input's dtype."""
        config, down = self.settings[name], self.held("down")[name]
        x = u.to(down.weight.dtype)
        h = self.held("up")[name](self.held("act")[name](down(x)))
        h = h * self.held("scale").get(name, config.scale)
        h = nn.functional.dropout(h, config.dropout, self.training)
        if name in self.held("gate"):
            h = h * pooled_gate(self.held("gate")[name], x, config.gate)
        return h.to(u.dtype)


class AfterOutput(Bottleneck):
    """Around the module that ends a sub-layer: h -> h + delta(h), h being the first of several outputs."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.base_layer(*args, **kwargs)
        h, others = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        for name in self.live():
            h = h + self.delta(name, h)
        return h if others is None else (h, *others)


class AroundBlock(Bottleneck):
    """Around the feed-forward of a model, or its last layer; r is the residual stream that enters its norm, if any.

    parallel: h = ffn(x) + delta(r or x); pfeiffer: h = ffn(x), h + delta(h + r).
    """

    residual: Any = None
    entered: Any = None

    def _prepare(self, tuner: Tuner, target: Target) -> None:
        place, root = tuner.module_map.ffn[target.key], tuner.model
        for name, keep in ((place.residual, self._keep_residual), (place.input, self._keep_input)):
            if name:
                self.hooks.append(root.get_submodule(name).register_forward_pre_hook(keep))

    def _keep_residual(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.residual = args[0]

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.entered = args[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        residual, entered, self.residual, self.entered = self.residual, self.entered, None, None
        x = x if entered is None else entered
        residual = x if residual is None else residual
        output = self.base_layer(*args, **kwargs)
        h, others = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        for name in self.live():
            config = self.settings[name]
            if config.place == "pfeiffer":
                h = h + self.delta(name, h + residual.view_as(h))
            else:
                h = h + self.delta(name, residual if config.reads == "residual" else x).view_as(h)
        return h if others is None else (h, *others)


class AroundBertOutput(Bottleneck):
    """Around BertOutput(hidden, x) = norm(dropout(dense(hidden)) + x), x being the feed-forward's input.

    parallel: norm(h + x + delta(x)); pfeiffer: u = norm(h + x), norm(h + delta(u) + x), as AdapterHub has it.
    """

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        residual, after = input_tensor, []
        for name in self.live():
            if self.settings[name].place == "pfeiffer":
                after.append(name)
            else:
                residual = residual + self.delta(name, input_tensor)
        if not after:
            return self.base_layer(hidden_states, residual)  # type: ignore[no-any-return]
        base: Any = self.get_base_layer()
        h = base.dropout(base.dense(hidden_states))
        for name in after:
            h = h + self.delta(name, base.LayerNorm(h + input_tensor))
        return base.LayerNorm(h + residual)  # type: ignore[no-any-return]
