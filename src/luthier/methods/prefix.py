"""Prefix tuning: trained keys and values in front of every attention.

Li & Liang 2021, arXiv 2101.00190, section 4. Each layer's attention sees `length` virtual tokens more,

    K' = [P_k; K], V' = [P_v; V]      [P_k; P_v] of all layers = W_2 tanh(W_1 E) while training

The MLP steadies training and is dropped when the prefix is saved: 2 * length * key/value size numbers
per layer. Queries and positions of the text do not change, and no position of the model is used up.

When: generation, and many tasks on one base served side by side. When not: the result should merge, or
there is little time: prefixes learn more slowly than lora, and the learning rate decides.
"""

from typing import Any, ClassVar

from pydantic import PositiveFloat

from luthier.core.registry import Share, Size
from luthier.methods.base import Model, PrefixMethod


class Prefix(PrefixMethod):
    """Keys and values in front of every attention, from an MLP."""

    paper, typical_share = "2101.00190", 0.0073
    suggested_lr, suggested_lr_encoder = 2.8e-5, 3e-4
    lr_by_width = 2  # 0.003 on the embedded base, 192 wide, and 0.0003 on SmolLM2, 576 wide (benchmarks/methods)
    aliases: ClassVar = {"num_virtual_tokens": "length", "encoder_hidden_size": "hidden"}

    length: Size = 20
    """Virtual tokens per layer; the paper takes 5 to 10 for tables to text, 200 for summaries."""
    hidden: Size = 512
    """Hidden size of the MLP; the paper has 512 and 800."""
    init_std: PositiveFloat = 0.02
    """Spread of the start."""
    dropout: Share = 0.0
    """Share of the prefix dropped during training."""

    def peft_config(self, model: Model, steps: int) -> Any:
        from luthier.methods.layers.prefix import PrefixKVConfig

        encoder: dict[str, Any] = {"reparam": "mlp", "encoder_size": self.hidden}
        return PrefixKVConfig(length=self.length, init_std=self.init_std, prefix_dropout=self.dropout, **encoder)
