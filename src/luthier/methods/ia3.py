"""(IA)3: scale keys, values and the feed-forward's hidden units by trained vectors.

Liu et al. 2022, arXiv 2205.05638, section 3.3. softmax(q (l_k * k)^T) (l_v * v), and (l_ff * f(W_1 x)) W_2; all l
start at one, so training starts from the base exactly. In gated feed-forwards (Llama) l_ff scales the
input of the down projection. The vectors fold into the weights. Layers and file format are PEFT's, the
places are the paper's (PEFT's own list has the query in the place of the key for Qwen2 and Qwen3).

When: very few rows, and adapters of some kilobytes. When not: there is data for lora.
"""

from typing import Any

from luthier.methods.base import Model, PeftMethod
from luthier.models.targets import as_targets


class IA3(PeftMethod):
    """Scales on keys, values and feed-forward units."""

    paper, typical_share = "2205.05638", 0.00025
    family = "additive: adapters"
    suggested_lr, suggested_lr_encoder = 1e-2, 1e-2

    def peft_config(self, model: Model, steps: int) -> Any:
        from peft import IA3Config

        from luthier.models.module_map import module_map_of

        names = module_map_of(model)
        if not names.key:
            raise ValueError("this architecture has no attention with keys and values")
        targets = as_targets({*names.key, *names.value, *names.ffn_last}, model)
        return IA3Config(target_modules=targets, feedforward_modules=as_targets(names.ffn_last, model))
