"""Divergence: steps without a finite loss, losses far above those before, and what stops a run."""

from collections.abc import Sequence
from statistics import median

from luthier.core.errors import Diverged
from luthier.training.step import Gradient

IN_A_ROW = 5
"""So many steps in a row without a finite loss stop a run that would leave them out."""
IN_A_ROW_SCALED = 40
"""The same with fp16, whose scaler leaves steps out until it has found its scale: 2^16 halved to far below 1."""

WINDOW, FEWEST = 50, 20
"""A spike is told from the losses of the last 50 steps, once there are 20."""
TIMES, SPREADS = 2.0, 10.0
"""A spike is above twice their median, and above it by ten times their median distance from it."""


def spike(recent: Sequence[float], loss: float) -> float | None:
    """The median of `recent` where `loss` is far above it, else None."""
    if len(recent) < FEWEST:
        return None
    middle = median(recent)
    spread = median(abs(each - middle) for each in recent)
    return middle if loss > TIMES * middle and loss > middle + SPREADS * spread else None


ELSEWHERE = "a lower train.lr, train.clip=1.0, or train.precision=bf16 or fp32, in another folder: run=DIR"


def diverged(index: int, found: Gradient, in_a_row: int, *, skips: bool) -> Diverged:
    """What stops a run whose loss or gradient is not finite."""
    others = f", nor were the {in_a_row - 1} before it" if skips else ""
    return Diverged(
        f"step {index}: the loss is {found.loss}, the gradient norm {found.norm}; the step was not taken{others}",
        fix=ELSEWHERE if skips else f"train.on_nan=skip goes on here without such steps; or {ELSEWHERE}",
    )


def ruined(step: int, what: str | float, kept: str, *, skips: bool = True) -> Diverged:
    """What stops a run after a step that was taken. `what` is the name of a weight, or the held-out loss.

    Weights always do, for what they were before is gone. A held-out loss does unless the run `skips` it already.
    """
    if isinstance(what, str):
        return Diverged(f"step {step} left NaN or infinite weights, among them {what}; {kept}", fix=ELSEWHERE)
    return Diverged(
        f"step {step}: the held-out loss is {what}, with finite weights: a forward pass overflows; {kept}",
        fix=ELSEWHERE if skips else f"train.on_nan=skip goes on here without such evaluations; or {ELSEWHERE}",
    )
