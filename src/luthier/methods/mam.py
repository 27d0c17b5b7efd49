"""MAM Adapter (mix and match): a short prefix at attention and a scaled parallel adapter at the feed-forward.

He et al. 2022, arXiv 2110.04366, section 4.6: attention needs little capacity and takes a prefix, the
feed-forward uses more and takes a parallel adapter, scaled by s. The paper's sizes for summaries
(length 30, size 512, s = 4) are large on today's decoders; the defaults are its sizes for GLUE, doubled.

The paper has one learning rate. Here the prefix has a third of the one that it has alone (P-Tuning v2; from an MLP:
prefix tuning), and the same ratio to the adapter's where `train.lr` is given. At the adapter's rate it stays near where
it began, and takes attention from the text there.

When: full fine-tuning's quality is wanted at a fraction of it. When not: the result should merge, or
inference must be as fast as the base.
"""

from typing import Any, Literal

from pydantic import PositiveFloat

from luthier.core.registry import Size
from luthier.methods.base import METHODS, Model, PrefixMethod


class MAM(PrefixMethod):
    """Prefix and scaled parallel adapter together."""

    paper, typical_share = "2110.04366", 0.0030
    family = "hybrid"
    suggested_lr, suggested_lr_encoder = 3e-4, 7e-4
    lr_by_width = 0

    length: Size = 16
    """Virtual tokens per layer."""
    reparam: Literal["none", "mlp"] = "none"
    """Prefix as it is, or from an MLP while training, as in the paper (dropped when saved)."""
    hidden: Size = 512
    """Hidden size of the MLP."""
    size: Size = 32
    """Width of the bottleneck."""
    scale: PositiveFloat = 2.0
    """Factor s on the bottleneck; the paper has 4 for generation, 2 for GLUE."""

    def peft_config(self, model: Model, steps: int) -> Any:
        from luthier.methods.layers.composite import MamConfig

        return MamConfig(encoder_size=self.hidden, **self.model_dump(exclude={"hidden", "from_adapter"}))

    def lr_ratio_of(self, model: Model, name: str) -> float:
        if ".luthier_prefix." not in name:
            return 1.0
        base = model.get_base_model()
        alone = METHODS.parse("prefix" if self.reparam == "mlp" else "p_tuning_v2")
        return alone.learning_rate(base) / self.learning_rate(base) / 3
