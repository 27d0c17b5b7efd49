"""One self-contained HTML page about a comparison: table, significant differences, plots, and what papers claim."""

from collections.abc import Mapping, Sequence
from itertools import product
from math import cos, pi, sin
from typing import Any

from luthier.core.units import duration, gigabytes
from luthier.reports import page
from luthier.reports.loss_curve import BLUE, GREY, ORANGE, new_axes, png
from luthier.reports.run_report import figure, scale_of

INK = "#1c2430"
DISTANCES, DIRECTIONS = (8, 20, 34, 50, 68, 88), 16
"""Where a label may stand around its point, in display points: the nearest place that is free."""
LINE = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6}
"""From a label to its point, if it stands apart."""
COLORS = [BLUE, ORANGE, "#1a7f45", "#8a3fa0", "#b08900", "#00838f"]
"""Colors of the loss curves with the best scores; the others are gray."""


def render(body: Mapping[str, Any]) -> str:
    """The page of what stands in compare.json."""
    filters: dict[str, Any] = {"figure": figure, "bytes": kilobytes, "duration": duration, "count": count}
    filters |= {"share": share, "times": lambda ratio: f"{ratio:.2f} x"}
    filters["milliseconds"] = lambda seconds: f"{1e3 * seconds:.3g} ms"
    done = [row for row in body["rows"] if row["status"] == "done"]
    plots: dict[str, bytes] = {}
    if done:
        plots["Score against trainable parameters"] = scatter(body, done, "trainable", "trainable parameters", log=True)
        plots["Score against training time"] = scatter(body, done, "seconds", "seconds of training", log=False)
        plots["Loss"] = curves(done)
    return page.render("compare_report", filters, body=body, done=done, plots=plots)


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


def scatter(body: Mapping[str, Any], done: Sequence[Any], cost: str, label: str, *, log: bool) -> bytes:
    """PNG of score against `cost`, with intervals, the base's score, and the Pareto front."""
    from matplotlib import ticker

    axes = new_axes(9, 6.0, grid="both")
    rows = [row for row in done if row[cost]]
    front = sorted((row for row in rows if row.get(f"front_{cost}")), key=lambda row: row[cost])
    factor = 100.0 if scale_of(body["metric"]) is None else 1.0
    points = [(row[cost], row["score"]["value"] * factor, row["arm"]) for row in rows]
    if log:
        axes.set_xscale("log")
    x, y = [row[cost] for row in front], [row["score"]["value"] * factor for row in front]
    axes.plot(x, y, color=ORANGE, linewidth=1.5, label="Pareto front", zorder=1)
    for row, (x, y, _) in zip(rows, points, strict=True):
        low, high = row["score"]["low"] * factor, row["score"]["high"] * factor
        axes.plot([x, x], [low, high], color=GREY, linewidth=1, zorder=0)
        axes.plot(x, y, "o", color=ORANGE if row in front else BLUE, markersize=6, zorder=2)
    if body["base"]:
        axes.axhline(body["base"]["value"] * factor, color=INK, linewidth=1, linestyle=":", label="untouched base")
    axes.margins(x=0.12, y=0.1)
    axes.set(xlabel=label, ylabel=body["metric"].replace("_", " ") + (" (%)" if factor == 100 else ""))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.legend(frameon=False, fontsize=9, loc="best")
    _label(axes, points)
    return png(axes)


def _label(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name where it covers no other name and no point, if there is such a place."""
    from matplotlib.patheffects import Normal, Stroke
    from matplotlib.text import Text

    axes.figure.canvas.draw()
    frame, renderer = axes.get_window_extent(), axes.figure.canvas.get_renderer()
    taken: list[Any] = []
    spots = [axes.transData.transform((x, y)) for x, y, _ in points]
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8.5, "color": INK}
    style["path_effects"] = [Stroke(linewidth=2.5, foreground="white"), Normal()]
    turns = [(step + 1) // 2 * (1 if step % 2 else -1) * 2 * pi / DIRECTIONS for step in range(DIRECTIONS)]
    for x, y, name in points:
        tried: list[tuple[int, Any, Any]] = []
        for distance, turn in product(DISTANCES, turns):  # to the right first, then around, then farther out
            dx, dy, line = distance * cos(turn), distance * sin(turn), LINE if distance > 20 else None
            side = "left" if dx > 1 else "right" if dx < -1 else "center"
            text = axes.annotate(name, (x, y), xytext=(dx, dy), ha=side, arrowprops=line, **style)
            text.update_positions(renderer)
            box = Text.get_window_extent(text)  # without the line to its point
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            clash = sum(box.overlaps(other) for other in taken) + sum(box.padded(3).contains(*spot) for spot in spots)
            tried.append((clash + 5 * (not inside), text, box))
            if not tried[-1][0]:
                break
        _, kept, box = min(tried, key=lambda each: each[0])
        taken.append(box)
        for _, text, _ in tried:
            if text is not kept:
                text.remove()


def curves(rows: Sequence[Any]) -> bytes:
    """PNG of the held-out loss of every method, or of the training loss if that was measured only once."""
    axes = new_axes(9, 4.6, grid="both")
    held = all(len(row["curve"]["held_out"]) > 1 for row in rows)
    for place, row in enumerate(rows):
        line = row["curve"]["held_out" if held else "train"]
        look: dict[str, Any] = {"color": GREY, "linewidth": 0.9, "zorder": 1}
        if place < len(COLORS):
            look = {"color": COLORS[place], "linewidth": 1.8, "zorder": 2, "label": row["arm"]}
        axes.plot([step for step, _ in line], [loss for _, loss in line], **look)
    axes.set(xlabel="step", ylabel=f"{'held-out' if held else 'training'} loss (nats per target)")
    more = f"; gray: the other {len(rows) - len(COLORS)}" if len(rows) > len(COLORS) else ""
    axes.set_title(f"best scores in color{more}", fontsize=9, loc="left", color=INK)
    axes.legend(frameon=False, fontsize=9)
    return png(axes)
