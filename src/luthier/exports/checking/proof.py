"""Does what was exported answer as what was trained? Held-out prompts through both, and the differences in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from numpy.typing import NDArray

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.core.events import Progress


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out row."""

    ids: Sequence[int]
    """All its tokens: logits are compared at each."""
    start: int | None
    """Where its answer begins, which is asked for; None of a classifier."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the replay of held-out prompts gave."""

    prompts: int
    positions: int
    """Places at which all logits were compared."""
    largest: float
    """Difference of two logits, at most."""
    mean: float
    """Difference, mean over places and vocabulary."""
    spread: float
    """Standard deviation of the trained model's logits over the vocabulary, mean over places."""
    bound: float | None
    """What `largest` may be, as a share of `spread`; None where any difference is only told."""
    mean_bound: float | None
    """What `mean` may be, as a share of `spread`; None where `largest` says enough."""
    same_top: float
    """Share of places with the same likeliest token."""
    same_answers: float
    """Share of prompts with the same greedy answer, token by token; 1 for a classifier."""
    held: bool
    """Are `largest` and `mean` within their bounds?"""

    def record(self) -> dict[str, Any]:
        """As it stands in export.json."""
        return asdict(self)


def prove(
    trained: Player,
    exported: Player,
    prompts: Sequence[Prompt],
    *,
    bound: float | None,
    mean_bound: float | None = None,
    most: int,
    progress: Progress,
) -> Proof:
    """Ask both the same; `most` is the length of an answer in tokens. AssertionError where logits differ in shape."""
    import numpy as np

    largest, total, spread, positions, same_top, same = 0.0, 0.0, 0.0, 0, 0, 0
    for number, prompt in enumerate(prompts):
        before, after = trained.logits(prompt.ids), exported.logits(prompt.ids)
        if before.shape != after.shape:
            raise AssertionError(f"logits of shape {after.shape} where the trained model has {before.shape}")
        gap = np.abs(before - after)
        # A number that is none would compare as no difference.
        largest = max(largest, float(np.nan_to_num(gap, nan=np.inf).max()))
        total += float(gap.mean(-1).sum())
        spread += float(before.std(-1).sum())
        positions += len(before)
        same_top += int((before.argmax(-1) == after.argmax(-1)).sum())
        asked = prompt.ids[: prompt.start]
        same += prompt.start is None or trained.answer(asked, most) == exported.answer(asked, most)
        progress.measured("prompts", number + 1, len(prompts))
    spread /= positions
    mean = total / positions
    return Proof(
        len(prompts),
        positions,
        largest,
        mean,
        spread,
        bound,
        mean_bound,
        same_top / positions,
        same / len(prompts),
        held=(bound is None or largest <= bound * spread) and (mean_bound is None or mean <= mean_bound * spread),
    )


class Player(Protocol):
    """A model that answers, in whatever program it runs."""

    def logits(self, ids: Sequence[int]) -> NDArray[Any]:
        """Scores of the next token behind each of `ids`: [tokens, vocabulary]; of a classifier [1, labels]."""

    def answer(self, ids: Sequence[int], most: int) -> list[int]:
        """The likeliest tokens that follow, up to and with one that ends the answer; none of a classifier."""


@runtime_checkable
class Closing(Protocol):
    """A player that holds files or memory of another program."""

    def close(self) -> None:
        """Give them back."""
