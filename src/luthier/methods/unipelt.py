"""UniPELT: prefix, adapter and LoRA together, each behind a learned gate.

Mao et al. 2022, arXiv 2110.07577, section 3.2. A gate g = sigmoid(w x + b) per sub-module and layer learns
which of them the task needs; LoRA's gate takes the place of alpha / rank. The paper pools the gate over
the whole sequence, which in a causal model would show every token its future and break cached
generation: `gate: auto` pools on encoders and takes the token's own gate on decoders.

When: few rows, and no time to find out which method suits. When not: memory and speed count, for it
pays for all three; the result does not merge.
"""

from typing import Any, Literal

from luthier.core.errors import InputError
from luthier.core.registry import Size
from luthier.methods.base import Model, PrefixMethod
from luthier.models.targets import check_rank, linear_layers


class UniPELT(PrefixMethod):
    """Gated prefix, adapter and LoRA together."""

    paper, typical_share = "2110.07577", 0.0056
    family = "hybrid"
    suggested_lr, suggested_lr_encoder = 5e-4, 7e-4
    lr_by_width = 0

    length: Size = 10
    """Virtual tokens per layer."""
    reparam: Literal["none", "mlp"] = "none"
    """Prefix as it is, or from an MLP while training (dropped when saved)."""
    hidden: Size = 512
    """Hidden size of the MLP."""
    size: Size = 48
    """Width of the bottleneck; the paper has 48 on BERT-base."""
    rank: Size = 8
    """Rank of LoRA on query and value."""
    gate: Literal["auto", "mean", "token"] = "auto"
    """Pooling of the gates: mean over the sequence (encoders only), or each token's own."""

    def peft_config(self, model: Model, steps: int) -> Any:
        from luthier.methods.layers.composite import UniPeltConfig
        from luthier.models.module_map import module_map_of

        names = module_map_of(model)
        adapted = {*names.query, *names.value}
        check_rank({n: layer for n, layer in linear_layers(model).items() if n in adapted}, self.rank)
        if names.causal and self.gate == "mean":
            message = "method.gate=mean pools over the whole sequence, which shows a causal model its future"
            raise InputError(message, fix="method.gate=token")
        if names.causal and model.config.model_type == "doge":
            message = "method unipelt gates its prefix through the attention mask, of which doge reads only the sign"
            raise InputError(message, fix="method=mam or method=lora")
        gate = ("token" if names.causal else "mean") if self.gate == "auto" else self.gate
        own = self.model_dump(exclude={"hidden", "gate", "from_adapter"})
        return UniPeltConfig(encoder_size=self.hidden, gate=gate, **own)
