"""One self-contained HTML page about a comparison: table, real differences, plots, and what papers claim."""

import base64
from collections.abc import Mapping
from typing import Any

from luthier.core.units import duration, gigabytes
from luthier.reports import page
from luthier.reports.run_report import figure


def render(body: Mapping[str, Any]) -> str:
    """The page of what stands in compare.json."""
    filters: dict[str, Any] = {
        "figure": figure,
        "bytes": kilobytes,
        "duration": duration,
        "count": count,
        "share": share,
        "times": times,
        "milliseconds": lambda seconds: f"{1e3 * seconds:.3g} ms",
    }
    done = [row for row in body["rows"] if row["status"] == "done"]
    plots: dict[str, bytes] = {}
    if done:
        from luthier.reports.compare_plots import curves, scatter

        plots["Score against trainable parameters"] = scatter(body, "trainable", "trainable parameters", log=True)
        plots["Score against training time"] = scatter(body, "seconds", "seconds of training", log=False)
        plots["Loss"] = curves(body)
    return page.render(
        "compare_report",
        filters,
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
    """As `gigabytes`, but `8 kB` if it is less than a megabyte."""
    return gigabytes(size) if size >= 1e6 else f"{size / 1e3:.0f} kB"


def share(part: float) -> str:
    """A share in percent with three significant digits."""
    return f"{100 * part:.3g} %"


def times(ratio: float) -> str:
    """`1.04 x`."""
    return f"{ratio:.2f} x"
