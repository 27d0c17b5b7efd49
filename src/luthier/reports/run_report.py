"""One self-contained HTML page about a run: what was gained, the loss curve, the data, the worst examples."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from luthier.evaluation.contrast import words_of
from luthier.evaluation.metrics.base import metrics_of
from luthier.reports import page

Json = Mapping[str, Any]


def render(
    result: Json, data: Json, loss_png: bytes, recipe: str, environment: Json, predictions: Sequence[Json]
) -> str:
    """The page of a run, from what its folder has."""
    filters = {"figure": figure, "shift": shift, "output": words_of, "scale": scale_of}
    values = {"result": result, "data": data, "recipe": recipe, "environment": environment}
    return page.render("run_report", filters, **values, worst=worst(predictions), loss_png=loss_png)


def worst(predictions: Sequence[Json], count: int = 12) -> list[Json]:
    """Wrong answers first, then the highest loss per target."""

    def badness(row: Json) -> tuple[bool, float]:
        tuned = row["tuned"]
        wrong = "chosen" in tuned and tuned["chosen"] != tuned["label"]
        loss = tuned.get("loss_sum", 0.0)
        return wrong, math.inf if loss is None else loss / max(1, tuned.get("targets", 1))

    return sorted(predictions, key=badness, reverse=True)[:count]


@cache
def scale_of(name: str) -> str | None:
    """The range of a metric that is not a share, such as "0 to 100", or ""; None for a share."""
    scales = {known: metric.scale for known, metric in metrics_of().items()} | {"bits_per_byte": ""}
    return scales.get(name)


def shift(name: str, before: float, after: float) -> str:
    """The score of one example before and after; right or wrong in words."""
    if name in ("accuracy", "exact_match", "pass_rate") and {before, after} <= {0, 1}:
        return " → ".join("right" if each else "wrong" for each in (before, after))
    return f"{figure(name, before)} → {figure(name, after)}"


def figure(name: str, value: float | None, *, sign: bool = False) -> str:
    """A metric for people: shares in percent (points, with a sign, for a difference), the rest as numbers."""
    if value is None or not math.isfinite(value):
        return "NaN"
    plus, scale = "+" if sign else "", scale_of(name)
    if scale is None:
        return f"{100 * value:{plus}.1f}" + (" points" if sign else " %")
    if scale.startswith("0 to"):
        return f"{value:{plus}.2f}"
    return f"{value:{plus}.3f}" if abs(value) < 1000 else f"{value:{plus}.3g}"
