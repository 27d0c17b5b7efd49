"""One self-contained HTML page about a comparison: table, real differences, plots, and what papers claim."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib import resources
from typing import Any

from luthier.core.shell import public
from luthier.core.units import duration, gigabytes
from luthier.reports import compare_plots
from luthier.reports.run_report import figure


def render(body: Mapping[str, Any]) -> str:
    """The page of what stands in compare.json. All texts are escaped; it loads nothing and runs no script."""
    from jinja2 import Environment, StrictUndefined

    pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {
        "public": public,
        "figure": figure,
        "bytes": kilobytes,
        "duration": duration,
        "count": count,
        "share": share,
        "times": times,
        "milliseconds": lambda seconds: f"{1e3 * seconds:.3g} ms",
    }
    done = [row for row in body["rows"] if row["status"] == "done"]
    plots = {}
    if done:
        plots = {
            "Score against trainable parameters": compare_plots.scatter(
                body, "trainable", "trainable parameters", log=True
            ),
            "Score against training time": compare_plots.scatter(body, "seconds", "seconds of training", log=False),
            "Loss": compare_plots.curves(body),
        }
    source = resources.files("luthier.reports").joinpath("compare_report.html.jinja").read_text(encoding="utf-8")
    return pages.from_string(source).render(
        body=body,
        done=done,
        missing=[row for row in body["rows"] if row["status"] != "done"],
        plots={title: base64.b64encode(image).decode() for title, image in plots.items()},
        forgetting=any("forgetting" in row for row in done),
        full=any(row["arm"] == "full" for row in done),
    )


def count(number: float) -> str:
    """`4.40 M`, `27.6 k`, `512`."""
    if number >= 1e5:
        return f"{number / 1e6:.2f} M"
    return f"{number / 1e3:.1f} k" if number >= 1e3 else f"{number:.0f}"


def kilobytes(size: float) -> str:
    """As `gigabytes`, but `8 kB` where it is less than a megabyte."""
    return gigabytes(size) if size >= 1e6 else f"{size / 1e3:.0f} kB"


def share(part: float) -> str:
    """A share in percent with what digits it has."""
    return f"{100 * part:.3g} %"


def times(ratio: float) -> str:
    """`1.04 x`."""
    return f"{ratio:.2f} x"
