"""VeRA: one pair of random matrices for all layers, and two trained vectors each.

Kopiczko et al. 2023, arXiv 2310.11454. y = W x + b * (B (d * (A x))), A and B random, frozen and shared, d: [rank]
starting at 0.1, b: [out] starting at zero, so training starts from the base exactly. Parameters:
rank + out per layer, a tenth of LoRA's and less. It folds into the weights. Layers and format are PEFT's.

When: thousands of adapters are to be kept. When not: speed of learning counts; it needs learning rates
some ten times LoRA's.
"""

from typing import Any, ClassVar

from pydantic import PositiveFloat

from luthier.core.registry import Seed, Share, Size
from luthier.methods.base import TARGET_ALIASES, Model, TargetedMethod


class VeRA(TargetedMethod):
    """Trained vectors on shared random matrices."""

    paper, typical_share = "2310.11454", 0.0007
    family = "reparametrization"
    suggested_lr, suggested_lr_encoder = 6e-3, 1e-2
    aliases: ClassVar = {**TARGET_ALIASES, "r": "rank", "d_initial": "start"}

    rank: Size = 256
    """Rank of the shared matrices; it costs time, hardly parameters."""
    start: PositiveFloat = 0.1
    """What d starts from."""
    dropout: Share = 0.0
    """Share of the inputs dropped during training."""
    seed: Seed = 0
    """Draws the shared matrices; they are saved with the adapter."""

    def peft_config(self, model: Model, steps: int) -> Any:
        from peft import VeraConfig

        own: dict[str, Any] = {"r": self.rank, "d_initial": self.start, "vera_dropout": self.dropout}
        return VeraConfig(target_modules=self.target_modules(model), projection_prng_key=self.seed, **own)
