"""AdapterFusion: combine adapters that were trained before, each on its own task, for another task.

    delta(u) = sum_n p_n V d_n(u),  p = softmax_n((Q u) . (K d_n(u)))      d_n: what adapter n adds

Pfeiffer et al. 2021, arXiv 2005.00247, section 3: first an adapter is trained on each task, then all stay
frozen and a small attention in each layer learns which to use for each token. V starts as the identity and
is drawn to it (0.01 times the squared distance in the loss, as in AdapterHub). Parameters: 3 H^2 + 2 H in
each place. The run keeps a copy of the adapters, so theirs may be deleted.

When: little data for a task, and adapters of related ones. When not: there is much data (pfeiffer), or the
result should merge.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator

from luthier.methods.base import Model, PeftMethod, split_names


class Fusion(PeftMethod):
    """Attention over adapters that stay frozen."""

    paper, typical_share = "2005.00247", 0.1047
    suggested_lr = 5e-5
    family = "additive: adapters"
    mergeable, tries = False, True

    adapters: Annotated[tuple[str, ...], BeforeValidator(split_names)] = ()
    """Runs or adapter folders to fuse, all on this base and at the same place: pfeiffer, houlsby and the like."""

    def peft_config(self, model: Model, steps: int) -> Any:
        from luthier.methods.layers.fusion import FusionConfig

        return FusionConfig(adapters=list(self.adapters))

    def penalty(self, model: Model) -> Any:
        from luthier.methods.layers.fusion import penalty

        return penalty(model)
