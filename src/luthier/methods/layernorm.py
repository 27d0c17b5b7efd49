"""LayerNorm tuning: train the weights (and biases) of the norms, and nothing else.

Zhao et al. 2023, arXiv 2312.11420. Every layer norm and RMS norm of the language model trains, those on queries and
keys and the last one too; PEFT's own list of names has only some architectures. Each gets a trained copy, so the base
stays whole and may be quantized, and merging puts the copy in its place. Layers and file format are PEFT's.

When: adapters must be tiny, and the base needs another manner rather than more knowledge. When not: the base must learn
much; it has hundreds of times fewer parameters than lora.
"""

import warnings
from pathlib import Path
from types import MethodType
from typing import Any

from luthier.core.errors import InputError
from luthier.methods.base import Model, PeftMethod
from luthier.models.targets import norms

# PEFT 0.21 knows no norm among its layer types and warns of each. Goes when LNTuningLayer says what it wraps.
warnings.filterwarnings("ignore", r"Unsupported layer type '.*[Nn]orm")


class LayerNorm(PeftMethod):
    """The norms only."""

    paper, typical_share = "2312.11420", 0.000089
    family = "selective"
    suggested_lr, suggested_lr_encoder = 7e-3, 9e-3

    def peft_config(self, model: Model, steps: int) -> Any:
        from peft import LNTuningConfig

        if not (names := norms(model)):
            raise InputError("method layernorm: this model has no norm with weights", fix="method=lora")
        return LNTuningConfig(target_modules=names)

    def load(self, model: Model, folder: Path) -> Model:
        from peft import get_peft_model_state_dict
        from safetensors.torch import load_file

        from luthier.methods.layers.loading import WEIGHTS, fill

        # PEFT 0.21 leaves the copies in the base's type, and rounds what it loads: its `_cast_adapter_dtype` does
        # nothing here. Goes when it casts them as it does other adapters.
        tuned = super().load(model, folder)
        if not next(tuned.parameters()).is_meta:
            for layer in _layers(tuned):
                layer.ln_tuning_layers.float()
            fill(get_peft_model_state_dict(tuned, save_embedding_layers=False), load_file(folder / WEIGHTS))
        return tuned

    def guard(self, model: Model) -> None:
        for layer in _layers(model):
            layer.forward = MethodType(_in_own_type, layer)

    def merge(self, model: Model) -> Model:
        for layer in _layers(model):
            layer.ln_tuning_layers.to(next(layer.base_layer.parameters()).dtype)
        return super().merge(model)


def _layers(model: Model) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ == "LNTuningLayer"]


def _in_own_type(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Norm [..., H] in the type of the trained copy, float32, and give it back in that of `x`, which the base reads."""
    on = not (self.disable_adapters or self.merged) and self.active_adapters
    weights = self.ln_tuning_layers[self.active_adapters[0]] if on else self.base_layer
    return type(self).forward(self, x.to(next(weights.parameters()).dtype) if on else x, *args, **kwargs).to(x.dtype)
