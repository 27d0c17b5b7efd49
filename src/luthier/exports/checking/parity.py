"""The parity check: held-out prompts through the trained and the exported model, and their differences in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from luthier.core.events import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray


Bounds = tuple[float | None, float | None]
"""Allowed (largest, mean) difference of two logits, as a share of their spread; None: differences are reported."""


@dataclass(frozen=True, slots=True)
class HeldOutPrompt:
    """A held-out row."""

    ids: Sequence[int]  # all its tokens: logits are compared at each
    start: int | None  # where its answer begins; None for a classifier


class Runner(Protocol):
    """A model that answers, in whatever program it runs. It may have `close()`, which frees files and memory."""

    def logits(self, ids: Sequence[int]) -> "NDArray[Any]":
        """Scores of the token that follows each of `ids`: [tokens, vocabulary]; of a classifier [1, labels]."""

    def answer(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` greedy tokens, up to and including an end token; none of a classifier."""


@dataclass(frozen=True, slots=True)
class ParityCheck:
    """Differences between a trained and an exported model, as export.json has them."""

    prompts: int
    positions: int  # at which all logits were compared
    largest: float  # difference of two logits
    mean: float  # difference of two logits, over positions and vocabulary
    spread: float  # standard deviation of the trained model's logits over the vocabulary, mean over positions
    bound: float | None  # allowed `largest`, as a share of `spread`; None: differences are only reported
    mean_bound: float | None  # allowed `mean`, as a share of `spread`; None: no bound
    same_top: float  # share of positions with the same most likely token
    same_answers: float  # share of prompts with the same greedy answer, token by token; 1 for a classifier
    held: bool  # whether `largest` and `mean` are within their bounds


def check_parity(
    trained: Runner, exported: Runner, prompts: Sequence[HeldOutPrompt], bounds: Bounds, most: int, progress: Progress
) -> ParityCheck:
    """Compare both on all prompts, with answers of `most` tokens. AssertionError if logits differ in shape."""
    import numpy as np

    largest, total, spread, positions, same_top, same = 0.0, 0.0, 0.0, 0, 0, 0
    for number, prompt in enumerate(prompts):
        before, after = trained.logits(prompt.ids), exported.logits(prompt.ids)
        if before.shape != after.shape:
            raise AssertionError(f"logits of shape {after.shape}, but the trained model has {before.shape}")
        gap = np.abs(before - after)
        largest = max(largest, float(np.nan_to_num(gap, nan=np.inf).max()))  # NaN would compare as no difference
        total += float(gap.mean(-1).sum())
        spread += float(before.std(-1).sum())
        positions += len(before)
        same_top += int((before.argmax(-1) == after.argmax(-1)).sum())
        asked = prompt.ids[: prompt.start]
        same += prompt.start is None or trained.answer(asked, most) == exported.answer(asked, most)
        progress.measured("prompts", number + 1, len(prompts))
    spread, mean = spread / positions, total / positions
    held = all(bound is None or gap <= bound * spread for gap, bound in zip((largest, mean), bounds, strict=True))
    shares = same_top / positions, same / len(prompts)
    return ParityCheck(len(prompts), positions, largest, mean, spread, *bounds, *shares, held)
