"""MAM Adapter and UniPELT: several tuner layers under one PEFT method.

MAM (He et al. 2022, arXiv 2110.04366, section 4.6): a prefix at attention, a scaled parallel adapter at
the feed-forward. UniPELT (Mao et al. 2022, arXiv 2110.07577, section 3.2): a gated prefix, a gated
adapter after the feed-forward, and gated LoRA on query and value, whose gate replaces alpha / rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.methods.layers.base import Tuner, TunerConfig, TunerLayer, pooled_gate
from luthier.methods.layers.bottleneck import put_bottleneck
from luthier.methods.layers.module_map import Sites
from luthier.methods.layers.prefix import attach_prefix
from luthier.methods.layers.registry import peft_type, register


@dataclass
class _CompositeConfig(TunerConfig):
    """The fields of a prefix and of a bottleneck."""

    length: int = field(default=16, metadata={"help": "Virtual tokens per layer."})
    reparam: str = field(default="none", metadata={"help": "none, or mlp while training."})
    encoder_size: int = field(default=512, metadata={"help": "Hidden size of the MLP."})
    init_std: float = field(default=0.02, metadata={"help": "Spread of the prefix's start."})
    prefix_dropout: float = field(default=0.0, metadata={"help": "Share of the prefix dropped in training."})
    place: str = field(default="parallel", metadata={"help": "parallel or pfeiffer."})
    size: int = field(default=64, metadata={"help": "Width of the bottleneck."})
    activation: str = field(default="relu", metadata={"help": "A name of transformers' ACT2FN."})
    scale: float = field(default=1.0, metadata={"help": "Factor on the bottleneck's delta."})
    learned_scale: bool = field(default=False, metadata={"help": "Train the factor."})
    dropout: float = field(default=0.0, metadata={"help": "Share of the delta dropped in training."})
    init: str = field(default="zero", metadata={"help": "zero or normal."})
    reads: str = field(default="residual", metadata={"help": "Input in pre-norm layers: residual or input."})
    gate: str = field(default="none", metadata={"help": "none, mean (over the sequence) or token."})


@dataclass
class MamConfig(_CompositeConfig):
    """Prefix and scaled parallel adapter."""

    scale: float = field(default=4.0, metadata={"help": "Factor on the bottleneck's delta."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type("MAM")


@dataclass
class UniPeltConfig(_CompositeConfig):
    """Gated prefix, gated adapter, gated LoRA."""

    length: int = field(default=10, metadata={"help": "Virtual tokens per layer."})
    place: str = field(default="pfeiffer", metadata={"help": "parallel or pfeiffer."})
    gate: str = field(default="token", metadata={"help": "mean (the paper's, for encoders) or token."})
    rank: int = field(default=8, metadata={"help": "Rank of the LoRA part."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Share of LoRA's input dropped in training."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type("UNIPELT")


class GatedLoRA(TunerLayer):
    """base(x) + g(x) * B A x."""

    def __init__(
        self, base_layer: nn.Module, adapter: str, config: Any, *, parent: nn.Module, namespace: str, **_: Any
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._hold(namespace, adapter, base_layer, modules=("A", "B", "lgate"))
        self.update_layer(adapter, config)

    def update_layer(self, adapter: str, config: Any, **_: Any) -> None:
        base: Any = self.get_base_layer()
        size_in, size_out = (base.nx, base.nf) if isinstance(base, Conv1D) else (base.in_features, base.out_features)
        a, b, gate = (
            nn.Linear(size_in, config.rank, bias=False),
            nn.Linear(config.rank, size_out, bias=False),
            nn.Linear(size_in, 1),
        )
        nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
        nn.init.zeros_(b.weight)
        nn.init.normal_(gate.weight, std=0.02)
        self.held("A")[adapter], self.held("B")[adapter], self.held("lgate")[adapter] = a, b, gate
        self.settings[adapter] = {"dropout": config.lora_dropout, "gate": config.gate}
        self._placed(adapter, config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_layer(x, *args, **kwargs)
        for name in self.live("A"):
            a, settings = self.held("A")[name], self.settings[name]
            h = x.to(a.weight.dtype)
            delta = self.held("B")[name](a(nn.functional.dropout(h, settings["dropout"], self.training)))
            y = y + (delta * pooled_gate(self.held("lgate")[name], h, settings["gate"])).to(y.dtype)
        return y


class _CompositeModel(Tuner):
    def inject(self, kind: str, config: Any, adapter: str, target: nn.Module, name: str, parent: nn.Module) -> None:
        if kind == "attention":
            attach_prefix(self, config, adapter, target)
        elif kind == "ffn":
            put_bottleneck(self, kind, config, adapter, target, name, parent)
        else:
            self.wrap(GatedLoRA, config, adapter, target, name, parent)


class MamModel(_CompositeModel):
    """PEFT's view of MAM."""

    prefix = "mam_"

    def places(self, config: MamConfig, sites: Sites) -> dict[str, str]:
        return {"attention": sites.attention, "ffn": sites.ffn}


class UniPeltModel(_CompositeModel):
    """PEFT's view of UniPELT."""

    prefix = "unipelt_"

    def places(self, config: UniPeltConfig, sites: Sites) -> dict[str, str]:
        return {"attention": sites.attention, "query": sites.query, "value": sites.value, "ffn": sites.ffn}


register("MAM", MamConfig, MamModel)
register("UNIPELT", UniPeltConfig, UniPeltModel)
