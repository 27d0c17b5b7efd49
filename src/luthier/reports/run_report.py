"""One self-contained HTML page about a run: what was gained, the loss curve, the data, the worst examples."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from luthier.core.shell import public
from luthier.evaluation.contrast import words_of


def render(
    result: Mapping[str, Any],
    data: Mapping[str, Any],
    loss_png: bytes,
    recipe: str,
    environment: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
) -> str:
    """The page. All texts of data and model are escaped; the page loads nothing and runs no script."""
    from jinja2 import Environment, StrictUndefined

    pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters["figure"] = figure
    source = resources.files("luthier.reports").joinpath("run_report.html.jinja").read_text(encoding="utf-8")
    pages.filters |= {"public": public, "shift": shift, "said": words_of}
    return pages.from_string(source).render(
        result=result,
        data=data,
        recipe=recipe,
        environment=environment,
        worst=worst(predictions),
        spans=SPANS,
        loss_png=base64.b64encode(loss_png).decode(),
    )


def worst(predictions: Sequence[Mapping[str, Any]], count: int = 12) -> list[Mapping[str, Any]]:
    """Wrong answers first, then the highest loss per target."""

    def badness(row: Mapping[str, Any]) -> tuple[bool, float]:
        tuned = row["tuned"]
        wrong = "chosen" in tuned and tuned["chosen"] != tuned["label"]
        loss = tuned.get("loss_sum", 0.0)
        return wrong, math.inf if loss is None else loss / max(1, tuned.get("targets", 1))

    return sorted(predictions, key=badness, reverse=True)[:count]


NUMBERS = ("loss", "perplexity", "mcc", "pearson", "spearman", "squared_error", "bits_per_byte")
"""Scores that are no shares; they have three decimals."""
TENS = ("bleu", "chrf", "judge")
"""Scores from 0 to 100 (sacrebleu's) or 0 to 10, with two decimals."""
SPANS = {
    "bleu": "0 to 100",
    "chrf": "0 to 100",
    "judge": "0 to 10",
    "mcc": "-1 to 1",
    "pearson": "-1 to 1",
    "spearman": "-1 to 1",
}
"""Where a score could be taken for another scale."""


def shift(name: str, before: float, after: float) -> str:
    """What one example scored before and after; right or wrong in words."""
    if name in ("accuracy", "exact_match", "pass_rate") and {before, after} <= {0, 1}:
        return " → ".join("right" if each else "wrong" for each in (before, after))
    return f"{figure(name, before)} → {figure(name, after)}"


def figure(name: str, value: float | None, *, sign: bool = False) -> str:
    """A metric for people: shares in percent (points, with a sign, for a difference), the rest as numbers."""
    if value is None or not math.isfinite(value):
        return "no number"
    plus = "+" if sign else ""
    if name in NUMBERS:
        return f"{value:{plus}.3f}" if abs(value) < 1000 else f"{value:{plus}.3g}"
    if name in TENS:
        return f"{value:{plus}.2f}"
    return f"{100 * value:{plus}.1f}" + (" points" if sign else " %")
