"""Models that answer held-out prompts, behind one face whatever program they run in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn


class TorchPlayer:
    """A model of transformers or PEFT."""

    def __init__(self, model: nn.Module, ends: Sequence[int], pad: int) -> None:
        self.model, self.ends, self.pad = model.eval(), list(ends), pad

    def logits(self, ids: Sequence[int]) -> NDArray[Any]:
        """[tokens, vocabulary] in float32; of a classifier [1, labels]."""
        import torch

        with torch.inference_mode():
            row = torch.tensor([list(ids)], device=next(self.model.parameters()).device)
            made: Any = self.model(input_ids=row, attention_mask=torch.ones_like(row)).logits
        made = made[0] if made.dim() == 3 else made
        # A prompt method may answer for its virtual tokens as well: those stand first.
        return made[-len(ids) :].float().cpu().numpy()  # type: ignore[no-any-return]

    def answer(self, ids: Sequence[int], most: int) -> list[int]:
        """Greedy."""
        import torch
        from transformers import GenerationConfig

        if not self.ends:
            return []
        options = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=self.ends, pad_token_id=self.pad)
        with torch.inference_mode():
            row = torch.tensor([list(ids)], device=next(self.model.parameters()).device)
            made = self.model.generate(  # type: ignore[operator]
                input_ids=row, attention_mask=torch.ones_like(row), generation_config=options
            )
        return made[0, len(ids) :].tolist()  # type: ignore[no-any-return]
