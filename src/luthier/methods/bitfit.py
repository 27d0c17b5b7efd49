"""BitFit: train the bias terms, and nothing else.

Ben Zaken et al. 2021, arXiv 2106.10199. y = W x + b + delta, delta zero at the start: the same as training
b itself, but the base stays whole, so it can be switched off and may be quantized. About 0.1 % of an
encoder; on small data sets near full fine-tuning, on generation well below it.

When: an encoder and few rows. When not: Llama, Mistral, Qwen3 and Gemma have no biases at all, and
Qwen2 only on query, key and value. `missing: refuse` says so and stops where there is none;
`missing: add` gives every linear layer a bias of zero, which is no longer the paper's method.
"""

import copy
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from luthier.core.errors import InputError
from luthier.methods.base import Model, PeftMethod, split_names
from luthier.models.targets import check_targets

Term = Literal["query", "key", "value", "intermediate", "output", "attention_layernorm", "output_layernorm"]
Terms = Annotated[tuple[Term, ...] | Literal["all"], BeforeValidator(lambda v: v if v == "all" else split_names(v))]


class BitFit(PeftMethod):
    """Bias terms only."""

    paper, typical_share = "2106.10199", 0.000056
    family = "selective"
    suggested_lr, suggested_lr_encoder = 2.8e-4, 2e-3
    lr_by_width = 2  # 0.03 on the embedded base, 192 wide, and 0.002 to 0.006 on SmolLM2, 576 wide (benchmarks/methods)

    terms: Terms = "all"
    """Which biases: all, or some of query, key, value, intermediate, output, attention_layernorm, output_layernorm."""
    missing: Literal["refuse", "add"] = "refuse"
    """Where linear layers have no bias: train those that exist and refuse if there is none, or add zero ones."""

    def peft_config(self, model: Model, steps: int) -> Any:
        from luthier.methods.layers.bias import BitFitConfig, bias_places

        terms: Any = self.terms if self.terms == "all" else list(self.terms)
        config = BitFitConfig(terms=terms, missing="add" if self.missing == "add" else "skip")
        if not bias_places(model, config):
            kind = getattr(model.config, "model_type", "this model")
            message = f"method bitfit: {kind} has no bias that BitFit could train (terms: {self.terms})"
            raise InputError(message, fix="method.missing=add gives each linear layer a bias of zero, or method=lora")
        return config

    def caveat(self, model: Model) -> str:
        if self.missing == "add":
            return self.unmergeable(model)
        layers = check_targets(model, "all-linear").values()
        bare = sum(getattr(layer, "bias", None) is None for layer in layers)
        left = f"{bare} of the {len(layers)} linear layers have no bias, so BitFit leaves them as they are"
        return f"{left}; method.missing=add gives each a bias of zero" if bare else ""

    def unmergeable(self, model: Model) -> str:
        from luthier.methods.layers.bias import bias_places

        if self.missing != "add":
            return ""
        layers = dict(model.named_modules())
        places = bias_places(model, self.peft_config(model, 0))
        added = {f"{name}.bias" for name in places if getattr(layers[name], "bias", None) is None}
        if _settings(model, {name for name, _ in model.named_parameters()} | added) is not None:
            return ""
        kind = getattr(model.config, "model_type", "this model")
        bias = f"{len(added)} layers a bias for which the code of {kind} has no place"
        beside = "the result works as an adapter beside its base, but cannot be saved as one merged model"
        return f"method.missing=add gives {bias}: {beside}"

    def merge(self, model: Model) -> Model:
        merged = super().merge(model)
        for key, value in (_settings(merged, {name for name, _ in merged.named_parameters()}) or {}).items():
            setattr(merged.config, key, value)  # so that transformers reads the new biases
        return merged


def _settings(model: Any, names: set[str]) -> dict[str, bool] | None:
    """Keys of the configuration with which the architecture has just these parameters; None where there are none."""
    import torch

    off = [key for key, value in model.config.to_dict().items() if key.endswith("bias") and value is False]
    for keys in ([], off, *([key] for key in off)):
        config = copy.deepcopy(model.config)
        for key in keys:
            setattr(config, key, True)
        with torch.device("meta"):
            made = type(model)._from_config(config)
        if {name for name, _ in made.named_parameters()} == names:
            return dict.fromkeys(keys, True)
    return None
