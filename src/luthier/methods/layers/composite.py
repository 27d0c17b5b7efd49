"""MAM Adapter and UniPELT: several tuner layers under one PEFT method.

MAM (He et al. 2022, arXiv 2110.04366, section 4.6): a prefix at attention, a scaled parallel adapter at
the feed-forward. UniPELT (Mao et al. 2022, arXiv 2110.07577, section 3.2): a gated prefix, a gated
adapter after the feed-forward, and gated LoRA on query and value, whose gate replaces alpha / rank.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.methods.layers.base import Target, Tuner, TunerLayer, pooled_gate
from luthier.methods.layers.bottleneck import BottleneckConfig, put_bottleneck
from luthier.methods.layers.prefix import PrefixFields, attach_prefix
from luthier.methods.layers.registry import register
from luthier.models.module_map import ModuleMap


@dataclass
class MamConfig(BottleneckConfig, PrefixFields):
    """Prefix and scaled parallel adapter."""

    kind: ClassVar[str] = "MAM"

    length: int = 16
    place: str = "parallel"
    scale: float = 4.0


@dataclass
class UniPeltConfig(BottleneckConfig, PrefixFields):
    """Gated prefix, gated adapter, gated LoRA."""

    kind: ClassVar[str] = "UNIPELT"

    length: int = 10
    place: str = "pfeiffer"
    gate: str = "token"  # mean (the paper's, for encoders) or token
    rank: int = 8  # of the LoRA part
    lora_dropout: float = 0.0  # share of LoRA's input dropped in training


class GatedLoRA(TunerLayer):
    """base(x) + g(x) * B A x."""

    def __init__(self, tuner: Tuner, target: Target) -> None:
        super().__init__()
        self.base_layer = target.module
        self._hold(tuner, target, modules=("A", "B", "lgate"))
        self.update_layer(target.adapter, target.config)

    def update_layer(self, adapter: str, config: Any) -> None:
        base: Any = self.get_base_layer()
        size_in, size_out = (base.nx, base.nf) if isinstance(base, Conv1D) else (base.in_features, base.out_features)
        a, b = nn.Linear(size_in, config.rank, bias=False), nn.Linear(config.rank, size_out, bias=False)
        gate = nn.Linear(size_in, 1)
        nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
        nn.init.zeros_(b.weight)
        nn.init.normal_(gate.weight, std=0.02)
        self.held("A")[adapter], self.held("B")[adapter], self.held("lgate")[adapter] = a, b, gate
        self.settings[adapter] = config
        self._placed(adapter, config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_layer(x, *args, **kwargs)
        for name in self.live("A"):
            a, config = self.held("A")[name], self.settings[name]
            h = x.to(a.weight.dtype)
            delta = self.held("B")[name](a(nn.functional.dropout(h, config.lora_dropout, self.training)))
            y = y + (delta * pooled_gate(self.held("lgate")[name], h, config.gate)).to(y.dtype)
        return y


class MamModel(Tuner):
    """PEFT's view of MAM."""

    prefix = "mam_"
    kinds: ClassVar[tuple[str, ...]] = ("attention", "ffn")

    def places(self, config: Any, names: ModuleMap) -> dict[str, str]:
        return {kind: getattr(names, kind) for kind in self.kinds}

    def inject(self, kind: str, target: Target) -> None:
        if kind == "attention":
            attach_prefix(self, target)
        elif kind == "ffn":
            put_bottleneck(self, kind, target)
        else:
            self.wrap(GatedLoRA, target)


class UniPeltModel(MamModel):
    """PEFT's view of UniPELT."""

    prefix = "unipelt_"
    kinds: ClassVar[tuple[str, ...]] = ("attention", "query", "value", "ffn")


register(MamConfig, MamModel)
register(UniPeltConfig, UniPeltModel)
