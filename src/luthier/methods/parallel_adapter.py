"""Parallel adapter: a bottleneck network beside the feed-forward, on its input.

He et al. 2022, arXiv 2110.04366, section 3.3: h = FFN(x) + s * delta(u). They find the parallel place
better than the sequential one, and the feed-forward better than attention for wide bottlenecks. With
`scale: 4` it is their scaled parallel adapter (4 for summaries and translation, 2 for GLUE).

When: generation with a generous bottleneck. When not: the result should merge (lora).
"""

import math
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat

from luthier.core.registry import Share, Size
from luthier.methods.base import DroppingMethod, Model


class ParallelAdapter(DroppingMethod):
    """A bottleneck beside the feed-forward."""

    paper, typical_share = "2110.04366", 0.0056
    family = "additive: adapters"
    suggested_lr, suggested_lr_encoder = 5e-4, 7e-4
    aliases: ClassVar = {"scaling": "scale", "bottleneck_size": "size"}

    size: Size = 64
    """Width of the bottleneck."""
    scale: PositiveFloat = 1.0
    """Factor s on the delta; 4 or 2 is the scaled parallel adapter."""
    learned_scale: bool = False
    """Train the factor, from `scale`."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """Non-linearity."""
    reads: Literal["residual", "input"] = "residual"
    """In pre-norm layers: the residual stream before the norm (the reference code), or the feed-forward's input."""
    dropout: Share = 0.0
    """Share of the delta dropped during training."""

    def learning_rate(self, model: Model) -> float:
        # The factor multiplies every step of the up matrix as well.
        return float(f"{super().learning_rate(model) / math.sqrt(self.scale):.2g}")

    def peft_config(self, model: Model, steps: int) -> Any:
        return self.bottleneck_config(model, place="parallel")
