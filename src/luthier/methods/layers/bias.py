"""BitFit (arXiv 2106.10199) as a PEFT method: y = base(x) + delta, delta zero at the start; the base stays as it is."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.methods.layers.base import Target, Tuner, TunerConfig, TunerLayer, register
from luthier.models.targets import NARROW, block_of, sides, text_part, why_unfit

OUTPUTS = ("lm_head", "classifier", "classification_head", "score", "qa_outputs", "cls", "qa_classifier")
SUBSETS = {
    "query": r".*\.(query|q_proj|q)",
    "key": r".*\.(key|k_proj|k)",
    "value": r".*\.(value|v_proj|v)",
    "intermediate": r".*\.(intermediate\.dense|up_proj|gate_proj|c_fc|wi|wi_\d)",
    "output": r".*\.(output\.dense|down_proj|o_proj|c_proj|wo|o)",
    "attention_layernorm": r".*\.(attention\.output\.LayerNorm|input_layernorm|ln_1)",
    "output_layernorm": r".*(?<!attention)\.(output\.LayerNorm|post_attention_layernorm|ln_2)",
}
"""The authors' seven subsets, on BERT's names and on the decoders' (which take norms before, not after)."""


@dataclass
class BitFitConfig(TunerConfig):
    """Which biases train."""

    terms: list[str] | str = "all"  # all, or names of SUBSETS
    missing: str = "skip"  # linear layers without a bias: skip, or add a zero one


class BiasDelta(TunerLayer):
    """Adds a vector [out] to the output [..., out] of the module it wraps."""

    containers: ClassVar = {"delta": nn.ParameterDict}
    made_bias = False

    def fill(self, adapter: str, config: BitFitConfig) -> None:
        bias = getattr(self.get_base_layer(), "bias", None)
        size = len(bias) if bias is not None else sides(self.get_base_layer())[1]
        self.held("delta")[adapter] = nn.Parameter(torch.zeros(size))

    def merge(self, safe_merge: bool = False, adapter_names: Any = None) -> None:
        base: Any = self.get_base_layer()
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.held("delta"):
                continue
            delta = self.held("delta")[name].data
            if safe_merge and not torch.isfinite(delta).all():
                # PEFT's words, which its users may look for
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
            if base.bias is None:
                dtype = base.weight.dtype if base.weight.is_floating_point() else delta.dtype
                base.register_parameter("bias", nn.Parameter(torch.zeros_like(delta, dtype=dtype), requires_grad=False))
                self.made_bias = True
            base.bias.data = base.bias.data + delta.to(base.bias.dtype)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        base: Any = self.get_base_layer()
        while self.merged_adapters:
            delta = self.held("delta")[self.merged_adapters.pop()].data
            base.bias.data = base.bias.data - delta.to(base.bias.dtype)
        if self.made_bias:
            base.bias, self.made_bias = None, False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if not self.merged:
            for name in self.live():
                y = y + self.held("delta")[name].to(y.dtype)
        return y


class BitFitModel(Tuner):
    """PEFT's view of BitFit."""

    prefix = "bitfit_"
    tuner_layer_cls: type[BaseTunerLayer] = BiasDelta
    mergeable = True

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        if peft_config.target_modules is None:
            blocks, names = peft_config.blocks, bias_places(self.model, peft_config)
            peft_config.target_modules = {name for name in names if blocks is None or block_of(name) in blocks}
            if not peft_config.target_modules:
                what = f"the linear layers of this model have no bias to train for the terms {peft_config.terms}"
                raise ValueError(f"{what}; missing='add' gives every linear layer a zero bias")
        return peft_config

    def _create_and_replace(self, *args: Any, **_: Any) -> None:
        self.wrap(BiasDelta, Target(*args))


def bias_places(model: nn.Module, config: BitFitConfig) -> list[str]:
    """Names of the modules whose bias trains, or would be added."""
    modules: dict[str, Any] = dict(model.named_modules())
    text = text_part(model)
    terms = [config.terms] if isinstance(config.terms, str) else config.terms
    places = []
    for name, module in modules.items():
        core = module.get_base_layer() if isinstance(module, BiasDelta) else module
        if not name or ".base_layer" in name or any(part in OUTPUTS for part in name.split(".")):
            continue
        if not name.startswith(text) or "encoder_attn" in name:  # no part of the language model
            continue
        if core is module and any(True for _ in module.children()):
            continue
        ndim = getattr(getattr(core, "weight", None), "ndim", 0)  # plain linear layers and norms: what else has a
        if ndim != 1 and (ndim != 2 or why_unfit(name, core, modules)):  # bias may be read by it and never called
            continue
        bias = getattr(core, "bias", None)
        has = isinstance(bias, Tensor) and bias.ndim == 1
        addable = config.missing == "add" and isinstance(core, nn.Linear | Conv1D) and min(sides(core)) >= NARROW
        chosen = terms == ["all"] or any(re.fullmatch(SUBSETS[term], name) for term in terms)
        if (has or addable) and chosen:
            places.append(name)
    return places


register("BITFIT", BitFitConfig, BitFitModel)
