"""LoHa: an update that is the elementwise product of two low-rank matrices.

Hyeon-Woo et al. 2021 (FedPara), arXiv 2108.06098, proposition 1; LyCORIS, arXiv 2309.14859, section 3. W: [out, in],

    W' = W + (alpha / rank) (A1 B1) * (A2 B2)      A1, A2: [out, rank], B1, B2: [rank, in]

The product reaches rank^2, with 2 * rank * (in + out) parameters per layer. A2 starts at zero, so training starts from
the base exactly. It folds into the weights. Layers and file format are PEFT's.

When: the update should have a high rank for its size. When not: speed counts, for the whole matrix of the update is
computed in every layer at every step (a merged model costs nothing).
"""

from typing import Any, ClassVar

from luthier.core.registry import Share, Size
from luthier.methods.base import TARGET_ALIASES, Model, State, TargetedMethod
from luthier.models.targets import check_rank, refuse_conv1d


class LoHa(TargetedMethod):
    """Elementwise products of two low-rank updates."""

    paper, typical_share = "2108.06098", 0.0175
    family = "reparametrization"
    suggested_lr, suggested_lr_encoder = 2e-3, 1.5e-3
    quantized_base = False
    aliases: ClassVar = {**TARGET_ALIASES, "r": "rank", "rank_dropout": "dropout"}

    rank: Size = 8
    """Rank of each of the two updates; their product reaches its square."""
    alpha: Size = 8
    """Strength of the update, which is scaled by alpha / rank."""
    dropout: Share = 0.0
    """Share of the update's rows dropped during training."""

    def check_layers(self, layers: State) -> None:
        refuse_conv1d(layers, "method loha cannot adapt")
        check_rank(layers, self.rank)

    def peft_config(self, model: Model, steps: int) -> Any:
        from peft import LoHaConfig

        own: dict[str, Any] = {"r": self.rank, "alpha": self.alpha, "rank_dropout": self.dropout}
        return LoHaConfig(target_modules=self.target_modules(model), **own)
