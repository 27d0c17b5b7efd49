"""Adapter tuning: small bottleneck networks behind the sub-layers of each layer.

    delta(h) = s * (W_up f(W_down h + b_down) + b_up)      W_down: [size, H], W_up: [H, size]

`place: houlsby` (arXiv 1902.00751, section 2.1) puts one after attention and one after the feed-forward,
`place: pfeiffer` (2005.00052, section 3) one after the feed-forward, on output and residual together;
`place: output` has Pfeiffer's place and Houlsby's form. Parameters: 2 * size * H + size + H each. The up
matrix starts at zero, so training starts from the base exactly.

`phm: 4` makes it Compacter (2106.04647): each matrix is a sum of 4 Kronecker products A_i (x) s_i t_i^T, with
A_i [4, 4] that all layers share. Parameters: 3 * (H + size) each, and 64. The preset compacter has Houlsby's
places, compacter_pp the feed-forward only; the start is the authors', a change below rounding.

`drop` is AdapterDrop (2010.11918): no adapters in the lowest blocks, where training then needs no backward
pass. With `drop_each_step` a step draws how many; such a run keeps its scores where `--drop-layers N` of
evaluate, chat and serve leaves N out.

When: encoders, and where several tasks share one base. When not: the result should merge, for an
adapter changes the computation and stays beside the base (lora merges).
"""

from typing import Any, ClassVar, Literal

from luthier.core.registry import Place, Share, Size
from luthier.methods.base import DroppingMethod, Model


class Adapter(DroppingMethod):
    """Bottlenecks after attention and feed-forward, or the latter only."""

    paper, typical_share = "1902.00751", 0.0111
    family = "additive: adapters"
    suggested_lr, suggested_lr_encoder = 5e-4, 7e-4
    aliases: ClassVar = {"bottleneck_size": "size", "adapter_size": "size", "non_linearity": "activation"}

    place: Literal["houlsby", "pfeiffer", "output"] = "houlsby"
    """After attention and feed-forward, or after the feed-forward only."""
    size: Size = 64
    """Width of the bottleneck."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    """Non-linearity; Houlsby's code and Compacter's have gelu, AdapterHub's Pfeiffer and the preset pfeiffer relu."""
    phm: Place = 0
    """Compacter: Kronecker products in each matrix (the paper has 4); divides the model's width and `size`."""
    init: Literal["zero", "normal"] = "zero"
    """Start of the up matrix: zero, an exact no-op, or N(0, 0.02), near one. Compacter has its own."""
    dropout: Share = 0.0
    """Share of the delta dropped during training."""

    def peft_config(self, model: Model, steps: int) -> Any:
        return self.bottleneck_config(model)
