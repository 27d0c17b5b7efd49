"""What people look at of a comparison: score against parameters and against time, and the loss curves, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from math import cos, pi, sin
from typing import Any

BLUE, ORANGE, GREY, INK = "#1f5fa8", "#d1602a", "#b8c0cc", "#1c2430"
DISTANCES, DIRECTIONS = (8, 20, 34, 50, 68, 88), 16
"""Where a label may stand around its point, in display points: the nearest place that is free."""
LINE = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6}
"""From a label to its point, where it stands apart."""
HIGHLIGHTED = 6
"""Loss curves with a colour of their own; the others are grey."""
COLOURS = ["#1f5fa8", "#d1602a", "#1a7f45", "#8a3fa0", "#b08900", "#00838f"]


def scatter(body: Mapping[str, Any], cost: str, label: str, *, log: bool) -> bytes:
    """PNG of score against `cost`, with intervals, the base's score, and the front that no other method beats."""
    from matplotlib import ticker

    axes, finish = _axes(6.0)
    rows = [row for row in body["rows"] if row["status"] == "done" and row[cost]]
    front = sorted((row for row in rows if row.get(f"front_{cost}")), key=lambda row: row[cost])
    factor = 1.0 if body["metric"] in ("loss", "perplexity") else 100.0
    if log:
        axes.set_xscale("log")
    axes.plot(
        [row[cost] for row in front],
        [row["score"]["value"] * factor for row in front],
        color=ORANGE,
        linewidth=1.5,
        label="no method is better and cheaper",
        zorder=1,
    )
    for row in rows:
        score, colour = row["score"], ORANGE if row in front else BLUE
        axes.plot([row[cost]] * 2, [score["low"] * factor, score["high"] * factor], color=GREY, linewidth=1, zorder=0)
        axes.plot(row[cost], score["value"] * factor, "o", color=colour, markersize=6, zorder=2)
    if body["base"]:
        axes.axhline(body["base"]["value"] * factor, color=INK, linewidth=1, linestyle=":", label="untouched base")
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel(label)
    axes.set_ylabel(body["metric"].replace("_", " ") + (" (%)" if factor == 100 else ""))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.legend(frameon=False, fontsize=9, loc="best")
    _label(axes, [(row[cost], row["score"]["value"] * factor, row["arm"]) for row in rows])
    return finish()


def _label(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name where it covers no other name and no point, if there is such a place."""
    from matplotlib.patheffects import Normal, Stroke

    figure = axes.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    taken: list[Any] = []
    spots = [axes.transData.transform((x, y)) for x, y, _ in points]
    frame = axes.get_window_extent(renderer)
    for x, y, name in points:
        best: tuple[float, Any, Any] | None = None
        for dx, dy in _places():
            side = "left" if dx > 1 else "right" if dx < -1 else "center"
            text = axes.annotate(
                name,
                (x, y),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=8.5,
                color=INK,
                arrowprops=LINE if dx**2 + dy**2 > 20**2 else None,
                path_effects=[Stroke(linewidth=2.5, foreground="white"), Normal()],
            )
            box = text.get_window_extent(renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            clash = sum(box.overlaps(other) for other in taken) + sum(box.padded(3).contains(*spot) for spot in spots)
            clash += 5 * (not inside)
            if best is not None and clash >= best[0]:
                text.remove()
                continue
            if best is not None:
                best[1].remove()
            best = clash, text, box
            if not clash:
                break
        assert best is not None
        taken.append(best[2])


def _places() -> Iterator[tuple[float, float]]:
    """To the right first, then around, then farther out."""
    for distance in DISTANCES:
        for step in range(DIRECTIONS):
            turn = (step + 1) // 2 * (1 if step % 2 else -1) * 2 * pi / DIRECTIONS
            yield distance * cos(turn), distance * sin(turn)


def curves(body: Mapping[str, Any]) -> bytes:
    """PNG of the held-out loss of every method, or of the training loss where that was measured once only."""
    axes, finish = _axes(4.6)
    rows = [row for row in body["rows"] if row["status"] == "done"]
    held = all(len(row["curve"]["held_out"]) > 1 for row in rows)
    key = "held_out" if held else "train"
    for place, row in enumerate(rows):
        line = row["curve"][key]
        bright = place < HIGHLIGHTED
        axes.plot(
            [step for step, _ in line],
            [loss for _, loss in line],
            color=COLOURS[place] if bright else GREY,
            linewidth=1.8 if bright else 0.9,
            label=row["arm"] if bright else None,
            zorder=2 if bright else 1,
        )
    axes.set_xlabel("step")
    axes.set_ylabel(f"{'held-out' if held else 'training'} loss (nats per target)")
    more = f"; grey: the other {len(rows) - HIGHLIGHTED}" if len(rows) > HIGHLIGHTED else ""
    axes.set_title(f"best scores in colour{more}", fontsize=9, loc="left", color=INK)
    axes.legend(frameon=False, fontsize=9)
    return finish()


def _axes(height: float) -> tuple[Any, Callable[[], bytes]]:
    # No pyplot: it keeps global state and looks for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e9ee", linewidth=0.8)
    axes.set_axisbelow(True)

    def finish() -> bytes:
        buffer = BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()

    return axes, finish
