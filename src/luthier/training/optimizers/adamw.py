"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

from luthier.training.optimizers.base import Made, Optimizer, Parameter


class AdamW(Optimizer):
    """Adam with decoupled weight decay, from torch; in 8 bit or paged, from bitsandbytes."""

    moves_by_rate = True

    bits: Literal[8, 32] = 32
    """Bits of a state; 8 are quantized in blocks (arXiv 2110.02861)."""
    paged: bool = False
    """States move to the CPU's memory when the GPU's is full (arXiv 2305.14314, section 3)."""

    @property
    def needs(self) -> str:
        return "bitsandbytes" if self.bits == 8 or self.paged else ""

    def build(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> Made:
        import torch

        if not self.needs:
            return torch.optim.AdamW(groups, lr=lr, betas=betas)
        import bitsandbytes as bnb

        # On a CPU there is nothing to page to: bitsandbytes then takes the plain form, which computes the same.
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU", UserWarning)
        name = ("Paged" if self.paged else "") + ("AdamW8bit" if self.bits == 8 else "AdamW32bit")
        return getattr(bnb.optim, name)(groups, lr=lr, betas=betas)

    def state_bytes(self, parameter: Parameter) -> int:
        small = parameter.numel() < 4096  # bitsandbytes leaves those in 32 bits
        return int(parameter.numel()) * (2 if self.bits == 8 and not small else 8)
