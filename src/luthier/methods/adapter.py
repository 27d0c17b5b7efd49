"""Adapter tuning: small bottleneck networks behind the sub-layers of each layer.

    delta(h) = s * (W_up f(W_down h + b_down) + b_up)      W_down: [size, H], W_up: [H, size]

`place: houlsby` (arXiv 1902.00751, section 2.1) puts one after attention and one after the feed-forward,
`place: pfeiffer` (2005.00052, section 3) one after the feed-forward, on output and residual together;
`place: output` has Pfeiffer's place and Houlsby's form. Parameters: 2 * size * H + size + H each. The up
matrix starts at zero, so training starts from the base exactly.

When: encoders, and where several tasks share one base. When not: the result should merge, for an
adapter changes the computation and stays beside the base (lora merges).
"""

from typing import Any, ClassVar, Literal

from luthier.core.registry import Share, Size
from luthier.methods.base import Model, PeftMethod


class Adapter(PeftMethod):
    """Bottlenecks after attention and feed-forward, or the latter only."""

    paper, typical_share = "1902.00751", 0.0111
    family = "additive: adapters"
    suggested_lr, suggested_lr_encoder = 3e-4, 7e-4
    mergeable, tries = False, True
    aliases: ClassVar = {"bottleneck_size": "size", "adapter_size": "size", "non_linearity": "activation"}

    place: Literal["houlsby", "pfeiffer", "output"] = "houlsby"
    """After attention and feed-forward, or after the feed-forward only."""
    size: Size = 64
    """Width of the bottleneck."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    """Non-linearity; Houlsby's code has gelu, AdapterHub's Pfeiffer relu."""
    init: Literal["zero", "normal"] = "zero"
    """Start of the up matrix: zero, an exact no-op, or N(0, 0.02), near one."""
    dropout: Share = 0.0
    """Share of the delta dropped during training."""

    def peft_config(self, model: Model, steps: int) -> Any:
        from luthier.methods.layers.bottleneck import BottleneckConfig

        return BottleneckConfig(**self.model_dump(exclude={"from_adapter"}))
