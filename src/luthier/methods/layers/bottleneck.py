"""Bottleneck adapters: delta(u) = s * (W_up f(W_down u + b_down) + b_up), in four places.

    houlsby   after attention and after the feed-forward, on each sub-layer's output (1902.00751, section 2.1)
    pfeiffer  after the feed-forward, on output and residual together (2005.00052, section 3)
    output    after the feed-forward, on its output alone (Pfeiffer's place, Houlsby's form)
    parallel  beside the feed-forward, on its input (2110.04366, section 3.3)

In a pre-norm layer (Llama) the feed-forward's input is not the residual stream, which the reference code of 2110.04366
and AdapterHub take before the norm, and so do we (`reads="residual"`); `reads="input"` takes the normed input.

With `phm` the matrices are sums of Kronecker products (Compacter, 2106.04647). The lowest bottlenecks may be left out
(AdapterDrop, 2010.11918): where none below trains, the backward pass ends there.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from luthier.core.errors import InputError
from luthier.methods.layers.base import Target, Tuner, TunerConfig, TunerLayer, pooled_gate
from luthier.models.module_map import module_map_of
from luthier.models.targets import block_of


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
    phm: int = 0  # Kronecker products that each matrix is a sum of; 0 is a plain matrix


class PHM(nn.Module):
    """x -> x W + b with W = sum_i A_i (x) s_i t_i^T, of n products (arXiv 2106.04647, sections 3.2 and 3.3).

    A_i is [n, n], s_i [in / n], t_i [out / n]. `share_rule` makes A one for all layers. ValueError where n divides
    one of the sizes not.
    """

    def __init__(self, size_in: int, size_out: int, n: int) -> None:
        super().__init__()
        if odd := [size for size in (size_in, size_out) if size % n]:
            raise ValueError(
                f"phm={n} must divide the model's width and the bottleneck's, and does not divide {odd[0]}"
            )
        self.rule = nn.Parameter(torch.randn(n, n, n) * 1e-4)  # as the authors' code: nearly a no-op
        self.left, self.right = (nn.Parameter(torch.empty(n, size // n)) for size in (size_in, size_out))
        for matrix in (self.left, self.right):  # Glorot's uniform start of each s_i [in / n, 1] and t_i [1, out / n]
            bound = math.sqrt(6 / (1 + matrix.shape[1]))
            nn.init.uniform_(matrix, -bound, bound)
        self.bias = nn.Parameter(torch.zeros(size_out))

    def matrix(self) -> Tensor:
        """W, [in, out]."""
        products = torch.einsum("nab,ni,no->aibo", self.rule, self.left, self.right)
        return products.reshape(products.shape[0] * products.shape[1], -1)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix().to(x.dtype) + self.bias


def projections(config: Any, hidden: int) -> tuple[nn.Module, nn.Module]:
    """The down and up projection of a bottleneck, at their start."""
    if config.phm:
        return PHM(hidden, config.size, config.phm), PHM(config.size, hidden, config.phm)
    down, up = nn.Linear(hidden, config.size), nn.Linear(config.size, hidden)
    for linear in (down, up):
        nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
    if config.init == "zero":  # as LoRA: the first step starts from the base exactly
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
    return down, up


class Bottleneck(TunerLayer):
    """The delta itself; subclasses say what it reads and where it is added."""

    containers: ClassVar = {**dict.fromkeys(("down", "up", "gate", "act"), nn.ModuleDict), "scale": nn.ParameterDict}

    block: int | None = None
    """Number of the block that it stands in."""
    dropped: bool = False
    """Left out for good."""
    sits_out: bool = False
    """Left out of this training step."""

    def _prepare(self, tuner: Tuner, target: Target) -> None:
        self.block = block_of(target.key)

    def live(self) -> list[str]:
        return [] if self.dropped or (self.sits_out and self.training) else super().live()

    def fill(self, adapter: str, config: Any) -> None:
        hidden = self.model_config.hidden_size
        self.held("down")[adapter], self.held("up")[adapter] = projections(config, hidden)
        if config.gate != "none":
            self.hold_gate("gate", adapter, hidden)
        if config.learned_scale:
            self.held("scale")[adapter] = nn.Parameter(torch.full((1,), float(config.scale)))
        self.held("act")[adapter] = ACT2FN[config.activation]

    def delta(self, name: str, u: Tensor) -> Tensor:
        """[..., H] -> [..., H], in the input's dtype."""
        config, down = self.settings[name], self.held("down")[name]
        x = u.to(down.bias.dtype)
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
        super()._prepare(tuner, target)
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


def share_rule(model: nn.Module, adapter: str) -> None:
    """Give every PHM layer of `adapter` one rule A, that of the first (arXiv 2106.04647, section 4)."""
    layers = [each for each in model.modules() if isinstance(each, Bottleneck) and adapter in each.settings]
    found = [each.held(short)[adapter] for each in layers if each.settings[adapter].phm for short in ("down", "up")]
    for part in found[1:]:
        part.rule = found[0].rule


def blocks_above(model: Any, lowest: int) -> list[int] | None:
    """Numbers of the blocks that keep their bottlenecks where the `lowest` have none; None for all. ValueError if none.

    In an encoder-decoder each half counts from its own lowest block.
    """
    blocks = sorted({block for name in module_map_of(model).ffn if (block := block_of(name)) is not None})
    if lowest and lowest >= len(blocks):
        raise ValueError(f"drop={lowest} leaves no adapter, for the model has {len(blocks)} blocks")
    return blocks[lowest:] if lowest else None


def sit_out(model: nn.Module, lowest: int) -> None:
    """Leave the bottlenecks of the `lowest` blocks out of training until the next call."""
    for module in model.modules():
        if isinstance(module, Bottleneck):
            module.sits_out = module.block is not None and module.block < lowest


def drop_lowest(model: Any, lowest: int, name: str) -> Any:
    """`model` without the bottlenecks in its `lowest` blocks, for use; `name` is what it was loaded from.

    InputError where it holds no bottlenecks, or where none would be left.
    """
    layers = [module for module in model.modules() if isinstance(module, Bottleneck)]
    kinds = {config.peft_type for config in getattr(model, "peft_config", {}).values()}
    if not layers or not all(kind in ("BOTTLENECK", "FUSION") for kind in kinds):
        what = "is no adapter whose lowest layers can be left out"
        raise InputError(f"--drop-layers {lowest}: {name} {what}", fix="leave it out; it is for adapters and fusion")
    blocks = {module.block for module in layers if module.block is not None}
    if lowest > max(blocks):
        message = f"--drop-layers {lowest}: {name} would have no adapter left"
        raise InputError(message, fix=f"at most {max(blocks)}, for its highest is in block {max(blocks)}")
    for module in layers:
        module.dropped = module.block is not None and module.block < lowest
    return model
