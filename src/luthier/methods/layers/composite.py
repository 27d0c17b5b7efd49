"""What PEFT sees of prefixes and bottlenecks, alone and together: prefixes, adapters, their fusion, MAM, UniPELT."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from luthier.methods.layers.base import Target, Tuner, TunerLayer, pooled_gate, register
from luthier.methods.layers.bottleneck import AfterOutput, AroundBertOutput, AroundBlock, BottleneckConfig, share_rule
from luthier.methods.layers.fusion import AroundFused, BertFused, FusedAfter, FusionConfig, load_parts, read_parts
from luthier.methods.layers.prefix import PrefixKVConfig, attach_prefix
from luthier.models.targets import as_targets, block_of, sides

WHAT = {"attention": "attention", "attention_out": "attention", "query": "query layer", "value": "value layer"}
WHAT |= {"ffn": "feed-forward block", "ffn_out": "feed-forward block"}
"""Field of the module map -> what a model lacks where it names none."""


@dataclass
class MamConfig(BottleneckConfig, PrefixKVConfig):
    """A prefix at attention and a scaled parallel adapter at the feed-forward (arXiv 2110.04366, section 4.6)."""

    length: int = 16
    place: str = "parallel"
    scale: float = 4.0


@dataclass
class UniPeltConfig(BottleneckConfig, PrefixKVConfig):
    """A gated prefix, adapter after the feed-forward and LoRA on query and value (arXiv 2110.07577, section 3.2)."""

    length: int = 10
    place: str = "pfeiffer"
    gate: str = "token"  # mean (the paper's, for encoders) or token
    rank: int = 8  # of the LoRA part
    lora_dropout: float = 0.0  # share of LoRA's input dropped in training


class GatedLoRA(TunerLayer):
    """base(x) + g(x) * B A x: UniPELT's gate takes the place of alpha / rank."""

    containers: ClassVar = dict.fromkeys(("A", "B", "lgate"), nn.ModuleDict)

    def fill(self, adapter: str, config: Any) -> None:
        size_in, size_out = sides(self.get_base_layer())
        a, b = nn.Linear(size_in, config.rank, bias=False), nn.Linear(config.rank, size_out, bias=False)
        gate = nn.Linear(size_in, 1)
        nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
        nn.init.zeros_(b.weight)
        nn.init.normal_(gate.weight, std=0.02)
        self.held("A")[adapter], self.held("B")[adapter], self.held("lgate")[adapter] = a, b, gate

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_layer(x, *args, **kwargs)
        for name in self.live():
            a, config = self.held("A")[name], self.settings[name]
            h = x.to(a.weight.dtype)
            delta = self.held("B")[name](a(nn.functional.dropout(h, config.lora_dropout, self.training)))
            y = y + (delta * pooled_gate(self.held("lgate")[name], h, config.gate)).to(y.dtype)
        return y


class PlacedTuner(Tuner):
    """Puts a layer at each place that the module map names."""

    kinds: ClassVar[tuple[str, ...]]
    """Fields of the module map whose modules get a layer; of bottlenecks alone, their place decides."""
    after: ClassVar[type[TunerLayer]] = AfterOutput
    around: ClassVar[type[TunerLayer]] = AroundBlock
    bert: ClassVar[type[TunerLayer]] = AroundBertOutput

    def places(self, config: Any) -> dict[str, Collection[str]]:
        """Field of the module map -> names of the modules that get a layer."""
        bottlenecks = {"houlsby": ("attention_out", "ffn_out"), "output": ("ffn_out",)}
        kinds = self.kinds or bottlenecks.get(config.place, ("ffn",))
        return {kind: getattr(self.module_map, kind) for kind in kinds}

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        places = self.places(peft_config)
        names = {name for each in places.values() for name in each}
        if peft_config.target_modules is None:
            if "attention" in places and (why := self.module_map.no_prefix):
                raise ValueError(f"no prefix can stand in this architecture: {why}")
            if empty := [kind for kind in places if not places[kind]]:
                raise ValueError(f"this architecture has no {WHAT[empty[0]]}")
            blocks = peft_config.blocks
            chosen = {name for name in names if blocks is None or block_of(name) in blocks}
            peft_config.target_modules = as_targets(chosen, self.model)
        for name, _ in self.model.named_modules():
            if ".base_layer." in name and name.replace(".base_layer", "") in names:
                outer, inner = name.partition(".base_layer")[0], name.rpartition(".")[2]
                what = f"another adapter already holds {outer}, so this one cannot reach {inner} inside it"
                raise ValueError(f"{what}: put the two on separate copies of the base")
        return peft_config

    def _create_and_replace(self, *args: Any, current_key: str = "", **_: Any) -> None:
        target = Target(*args)._replace(key=current_key)
        kinds = [kind for kind, names in self.places(target.config).items() if current_key in names]
        if not kinds:
            raise ValueError(f"{current_key} is a target, but {type(self).__name__} has no layer for it")
        if kinds[0] == "attention":
            attach_prefix(self, target)
        elif kinds[0] in ("query", "value"):
            self.wrap(GatedLoRA, target)
        elif kinds[0] == "ffn":
            bert = self.module_map.ffn[current_key].call == "bert_output"
            self.wrap(self.bert if bert else self.around, target)
        else:
            self.wrap(self.after, target)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        share_rule(model, adapter_name)


class FusionModel(PlacedTuner):
    """Adapters that were trained before, and what combines them."""

    prefix, kinds = "fusion_", ()
    after, around, bert = FusedAfter, AroundFused, BertFused

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        read_parts(peft_config, self.model)
        return super()._prepare_adapter_config(peft_config, model_config)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        load_parts(self.peft_config[adapter_name], model, adapter_name)


register("FUSION", FusionConfig, FusionModel)

for name, config, model, prefix, kinds in (
    ("PREFIX_KV", PrefixKVConfig, "PrefixKVModel", "prefixkv_", ("attention",)),
    ("BOTTLENECK", BottleneckConfig, "BottleneckModel", "bottleneck_", ()),  # by its place
    ("MAM", MamConfig, "MamModel", "mam_", ("attention", "ffn")),
    ("UNIPELT", UniPeltConfig, "UniPeltModel", "unipelt_", ("attention", "query", "value", "ffn")),
):
    register(name, config, type(model, (PlacedTuner,), {"prefix": prefix, "kinds": kinds}))
