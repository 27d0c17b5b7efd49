"""The parity check: held-out prompts through the trained and the exported model, and their differences in numbers."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import GenerationConfig

from luthier.core.events import Progress
from luthier.evaluation.records.context import split_answer
from luthier.exports.base import Bounds, Runner
from luthier.rendering.row import Row


def check_parity(
    trained: Runner, exported: Runner, rows: Sequence[Row], bounds: Bounds, most: int, progress: Progress
) -> dict[str, Any]:
    """Compare both on held-out `rows`, with answers of `most` tokens. AssertionError if logits differ in shape.

    `largest` and `mean` are differences of two logits; `spread` is the standard deviation of the trained model's logits
    over the vocabulary, averaged over `positions`; `same_top` is the share of positions with the same most likely
    token, `same_answers` that of prompts with the same greedy answer (1 for a classifier); `held` is whether `largest`
    and `mean` are within `bound` and `mean_bound` (see Bounds).
    """
    largest, total, spread, positions, same_top, same = 0.0, 0.0, 0.0, 0, 0, 0
    for number, row in enumerate(rows):
        before, after = trained.logits(row.ids), exported.logits(row.ids)
        if before.shape != after.shape:
            raise AssertionError(f"logits of shape {after.shape}, but the trained model has {before.shape}")
        gap = np.abs(before - after)
        largest = max(largest, float(np.nan_to_num(gap, nan=np.inf).max()))  # NaN would compare as no difference
        total += float(gap.mean(-1).sum())
        spread += float(before.std(-1).sum())
        positions += len(before)
        same_top += int((before.argmax(-1) == after.argmax(-1)).sum())
        asked = row.ids[: max(1, len(split_answer(row)[0]))]
        same += trained.answer(asked, most) == exported.answer(asked, most)
        progress.measured("prompts", number + 1, len(rows))
    spread, mean = spread / positions, total / positions
    held = all(bound is None or gap <= bound * spread for gap, bound in zip((largest, mean), bounds, strict=True))
    sizes = {"prompts": len(rows), "positions": positions, "largest": largest, "mean": mean, "spread": spread}
    allowed = dict(zip(("bound", "mean_bound"), bounds, strict=True))
    return sizes | allowed | {"same_top": same_top / positions, "same_answers": same / len(rows), "held": held}


class TorchRunner:
    """A model of transformers or PEFT."""

    def __init__(self, model: nn.Module, ends: Sequence[int], pad: int) -> None:
        self.model: Any = model.eval()
        self.ends, self.pad = list(ends), pad

    def logits(self, ids: Sequence[int]) -> NDArray[Any]:
        """[tokens, vocabulary] in float32, or [1, labels] for a classifier."""
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


class RunnerModule(nn.Module):
    """A runner as a PyTorch model that evaluations can call, with batches of one row."""

    def __init__(self, runner: Runner, classifies: bool) -> None:
        super().__init__()
        self.runner, self.classifies = runner, classifies
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # evaluations ask for its device

    def forward(self, input_ids: Any, **_: Any) -> Any:
        """Logits: [1, T, vocabulary], or [1, labels] for a classifier."""
        logits = torch.from_numpy(self.runner.logits(input_ids[0].tolist()))
        return SimpleNamespace(logits=logits if self.classifies else logits[None])

    def generate(self, input_ids: Any, generation_config: Any, **_: Any) -> Any:
        """The prompt with its greedy answer: [1, T + answer]."""
        answer = self.runner.answer(input_ids[0].tolist(), generation_config.max_new_tokens)
        return torch.cat([input_ids, input_ids.new_tensor([answer])], 1)
