"""LoKr: an update that is the Kronecker product of a small matrix and a low-rank one.

LyCORIS, arXiv 2309.14859, section 3 (from KronA, arXiv 2212.10650). For W: [out, in] with out = a c and in = b d,

    W' = W + (alpha / rank) C (x) (A B)      C: [a, b], A: [c, rank], B: [rank, d]

The sides are split as evenly as they can be, or by `factor` (a and b at most that). Where `rank` is no less than half
of the larger of c and d, A B is one full matrix [c, d]. C starts at zero, so training starts from the base exactly. It
folds into the weights. Layers and file format are PEFT's.

When: adapters must be small and the update's rank high. When not: speed counts, for the whole matrix of the update is
computed in every layer at every step (a merged model costs nothing).
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from luthier.core.registry import AUTO, Share, Size
from luthier.methods.base import TARGET_ALIASES, Model, State, TargetedMethod
from luthier.models.targets import refuse_conv1d


class LoKr(TargetedMethod):
    """Kronecker products of a small and a low-rank matrix."""

    paper, typical_share = "2309.14859", 0.00057
    family = "reparametrization"
    suggested_lr, suggested_lr_encoder = 4e-3, 3e-3
    quantized_base = False
    aliases: ClassVar = {**TARGET_ALIASES, "r": "rank", "rank_dropout": "dropout", "decompose_factor": "factor"}

    rank: Size = 8
    """Rank of the larger factor."""
    alpha: Size = 8
    """Strength of the update, which is scaled by alpha / rank."""
    factor: Annotated[Annotated[int, Field(ge=1, le=65_536)] | None, AUTO] = None
    """Most rows and columns of the small matrix; auto splits each side as evenly as it can be."""
    dropout: Share = 0.0
    """Share of the update's rows dropped during training."""

    def check_layers(self, layers: State) -> None:
        refuse_conv1d(layers, "method lokr cannot adapt")

    def peft_config(self, model: Model, steps: int) -> Any:
        from peft import LoKrConfig

        own: dict[str, Any] = {"r": self.rank, "alpha": self.alpha, "rank_dropout": self.dropout}
        return LoKrConfig(target_modules=self.target_modules(model), decompose_factor=self.factor or -1, **own)
