"""One self-contained HTML page about a run: what was gained, the loss curve, the data, the worst examples."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any


def render(
    result: Mapping[str, Any], data: Mapping[str, Any], loss_png: bytes, recipe: str,
    environment: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]],
) -> str:  # fmt: skip
    """The page. All texts of data and model are escaped; the page loads nothing and runs no script."""
    from jinja2 import Environment, StrictUndefined

    pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters["figure"] = figure
    source = resources.files("luthier.reports").joinpath("run_report.html.jinja").read_text(encoding="utf-8")
    return pages.from_string(source).render(
        result=result, data=data, recipe=recipe, environment=environment, worst=worst(predictions),
        loss_png=base64.b64encode(loss_png).decode(),
    )  # fmt: skip


def worst(predictions: Sequence[Mapping[str, Any]], count: int = 12) -> list[Mapping[str, Any]]:
    """Wrong answers first, then the highest loss per target."""

    def badness(row: Mapping[str, Any]) -> tuple[bool, float]:
        tuned = row["tuned"]
        wrong = "chosen" in tuned and tuned["chosen"] != tuned["label"]
        return wrong, tuned["loss_sum"] / max(1, tuned["targets"])

    return sorted(predictions, key=badness, reverse=True)[:count]


def figure(name: str, value: float, *, sign: bool = False) -> str:
    """A metric for people: shares in percent (points, with a sign, for a difference), the rest as numbers."""
    plus = "+" if sign else ""
    if name in ("loss", "perplexity"):
        return f"{value:{plus}.3f}" if abs(value) < 1000 else f"{value:{plus}.3g}"
    return f"{100 * value:{plus}.1f}" + (" points" if sign else " %")
