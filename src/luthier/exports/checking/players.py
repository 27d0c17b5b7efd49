"""Models that answer held-out prompts, behind one face whatever program they run in."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from luthier.exports.checking.proof import Player

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


def as_module(player: Player, *, classifies: bool) -> nn.Module:
    """A player as our evaluations ask a model of torch: row by row, without padding."""
    import torch
    from torch import nn

    class Played(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # evaluations ask on which device it is

        def forward(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
            """Logits, zero at padding: [B, T, vocabulary]; of a classifier [B, labels]."""
            made = [
                torch.from_numpy(player.logits(row[kept.bool()].tolist()))
                for row, kept in zip(input_ids, attention_mask, strict=True)
            ]
            if classifies:
                return SimpleNamespace(logits=torch.cat(made))
            logits = made[0].new_zeros(*input_ids.shape, made[0].size(-1))
            for place, each in enumerate(made):
                logits[place, attention_mask[place].bool()] = each
            return SimpleNamespace(logits=logits)

        def generate(self, input_ids: Any, attention_mask: Any, generation_config: Any) -> Any:
            """The prompts with their greedy answers: [B, T + longest answer]."""
            said = [
                player.answer(row[kept.bool()].tolist(), generation_config.max_new_tokens)
                for row, kept in zip(input_ids, attention_mask, strict=True)
            ]
            longest = max(map(len, said))
            padded = [tokens + [generation_config.pad_token_id] * (longest - len(tokens)) for tokens in said]
            return torch.cat([input_ids, input_ids.new_tensor(padded)], 1)

    return Played()
