"""One self-contained HTML page about a comparison: who is best at which cost, every figure, and what papers claim."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from luthier.core.units import duration, gigabytes
from luthier.reports import page
from luthier.reports.chart import Point, Words, curves_chart, scatter_chart, worded
from luthier.reports.run_report import figure, metric_words, scale_of, signed


def render(body: Mapping[str, Any]) -> str:
    """The page of what stands in compare.json."""
    filters: dict[str, Any] = {"figure": figure, "bytes": kilobytes, "duration": duration, "number": count}
    filters |= {"share": share, "times": lambda ratio: f"{ratio:.2f} x", "metric": metric_words, "signed": signed}
    filters["milliseconds"] = lambda seconds: f"{1e3 * seconds:,.3g}"
    done = [row for row in body["rows"] if row["status"] == "done"]
    tied = [row for row in done if row["against"].get("best", {}).get("verdict") == "no real difference"]
    equal = [row for row in done if row["arm"] == body["best"]] + tied
    values = {"body": body, "done": done, "tied": tied, "charts": scatters(body, done), "curves": curves(done)}
    values["smallest"] = min(equal, key=lambda row: row["adapter_bytes"], default=None)
    values["fastest"] = min(equal, key=lambda row: row["seconds"], default=None)
    return page.render("compare_report", filters, drawn=bool(done), **values)


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


def scatters(body: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> Markup:
    """Score over trainable parameters and over seconds of training, as large as so many points need."""
    factor = 100.0 if done and scale_of(body["metric"]) is None else 1.0
    size = {"width": 560.0, "height": 260.0 if len(done) < 5 else 340.0 if len(done) < 15 else 440.0}
    base = body["base"]["value"] * factor if body["base"] else None
    name = metric_words(body["metric"])
    score: Words = {into: text + " (%)" for into, text in name.items()} if factor == 100 else name
    drawn = []
    for cost, label, log in (
        ("trainable", worded("trainable parameters"), True),
        ("seconds", worded("seconds of training"), False),
    ):
        points = [
            Point(row["arm"], row[cost], *_scaled(row["score"], factor), row.get(f"front_{cost}", False))
            for row in done
            if row[cost]
        ]
        if points:
            drawn.append(page.charts(scatter_chart(points, cost=label, score=score, base=base, log=log), **size))
    return Markup("").join(Markup("<div>{}</div>").format(each) for each in drawn)


def _scaled(score: Mapping[str, float], factor: float) -> tuple[float, float, float]:
    return score["value"] * factor, score["low"] * factor, score["high"] * factor


def curves(done: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Held-out loss of every method, or the training loss if that was measured only once; None without any."""
    held = all(len(row["curve"]["held_out"]) > 1 for row in done)
    lines = {row["arm"]: row["curve"]["held_out" if held else "train"] for row in done}
    return page.charts(curves_chart(lines, held_out=held), width=1120.0, height=380.0) if any(lines.values()) else None
