"""Runners of PyTorch models, and any runner as a PyTorch module."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import GenerationConfig

from luthier.exports.checking.parity import Runner


class TorchRunner:
    """A model of transformers or PEFT."""

    def __init__(self, model: nn.Module, ends: Sequence[int], pad: int) -> None:
        self.model: Any = model.eval()
        self.ends, self.pad = list(ends), pad

    def logits(self, ids: Sequence[int]) -> NDArray[Any]:
        """[tokens, vocabulary] in float32; of a classifier [1, labels]."""
        with torch.inference_mode():
            made = self.model(**self._inputs(ids)).logits
        made = made[0] if made.dim() == 3 else made
        # A prompt method may have logits for its virtual tokens as well: those stand first.
        return made[-len(ids) :].float().cpu().numpy()  # type: ignore[no-any-return]

    def answer(self, ids: Sequence[int], most: int) -> list[int]:
        """Greedy tokens."""
        if not self.ends:
            return []
        options = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=self.ends, pad_token_id=self.pad)
        with torch.inference_mode():
            made = self.model.generate(**self._inputs(ids), generation_config=options)
        return made[0, len(ids) :].tolist()  # type: ignore[no-any-return]

    def _inputs(self, ids: Sequence[int]) -> dict[str, Any]:
        row = torch.tensor([list(ids)], device=next(self.model.parameters()).device)
        return {"input_ids": row, "attention_mask": torch.ones_like(row)}


def as_module(runner: Runner, *, classifies: bool) -> nn.Module:
    """A runner as a PyTorch model that evaluations can call: row by row, without padding."""

    def texts(input_ids: Any, attention_mask: Any) -> list[list[int]]:
        return [row[kept.bool()].tolist() for row, kept in zip(input_ids, attention_mask, strict=True)]

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # evaluations ask for its device

        def forward(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
            """Logits, zero at padding: [B, T, vocabulary]; of a classifier [B, labels]."""
            made = [torch.from_numpy(runner.logits(ids)) for ids in texts(input_ids, attention_mask)]
            if classifies:
                return SimpleNamespace(logits=torch.cat(made))
            logits = made[0].new_zeros(*input_ids.shape, made[0].size(-1))
            logits[attention_mask.bool()] = torch.cat(made)
            return SimpleNamespace(logits=logits)

        def generate(self, input_ids: Any, attention_mask: Any, generation_config: Any) -> Any:
            """The prompts with their greedy answers: [B, T + longest answer]."""
            most, pad = generation_config.max_new_tokens, generation_config.pad_token_id
            answers = [input_ids.new_tensor(runner.answer(ids, most)) for ids in texts(input_ids, attention_mask)]
            padded = nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=pad)
            return torch.cat([input_ids, padded], 1)

    return Module()
