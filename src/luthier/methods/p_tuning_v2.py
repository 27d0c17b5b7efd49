"""P-Tuning v2: deep prompts, trained keys and values in every layer, without a reparametrization.

Liu et al. 2022, arXiv 2110.07602, section 3. As prefix tuning, but P_k and P_v are trained as they are,
2 * length * key/value size numbers per layer, with higher learning rates (5e-3 to 1e-2), more epochs,
and a classification head on top for understanding tasks.

When: classification and tagging with a few hundredths of a per cent of the parameters. When not: the
result should merge, or steps are few.
"""

from typing import Any, ClassVar

from pydantic import PositiveFloat

from luthier.core.registry import Share, Size
from luthier.methods.base import Model, PrefixMethod


class PTuningV2(PrefixMethod):
    """Keys and values in front of every attention, as they are."""

    paper, typical_share = "2110.07602", 0.0008
    suggested_lr, suggested_lr_encoder = 1.6e-2, 2e-2
    aliases: ClassVar = {"num_virtual_tokens": "length", "pre_seq_len": "length"}

    length: Size = 64
    """Virtual tokens per layer; the authors' scripts have 8 to 128."""
    init_std: PositiveFloat = 0.02
    """Spread of the start."""
    dropout: Share = 0.0
    """Share of the prefix dropped during training; the authors' scripts have 0.1."""
    shifted: bool = False
    """Positions of the text begin behind the prefix, as in PEFT's prefix tuning, and not at 0."""

    @property
    def positions(self) -> int:
        return self.length if self.shifted else 0

    def peft_config(self, model: Model, steps: int) -> Any:
        from luthier.methods.layers.prefix import PrefixKVConfig

        start: dict[str, Any] = {"init_std": self.init_std, "shifted": self.shifted}
        return PrefixKVConfig(length=self.length, prefix_dropout=self.dropout, **start)
