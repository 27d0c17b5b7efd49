"""The loss curve as a PNG: training loss per step, smoothed, and held-out loss at each evaluation."""

import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

FONTS = r"(sans|gothic).*cjk.*regular|sourcehansans.*regular|wqy|msyh|simhei|pingfang|hiragino|heiti|arial ?unicode"
"""Names of font files with Chinese, Japanese and Korean, on Linux, Windows and macOS; matplotlib's own has none."""
GREY, BLUE, ORANGE = "#b8c0cc", "#1f5fa8", "#d1602a"


def new_axes(width: float, height: float, *, grid: str) -> Any:
    """Axes of a new figure, in inches, with a `grid` along "x", "y" or "both"."""
    # No pyplot: it keeps global state and looks for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e6e9ee", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def png(axes: Any) -> bytes:
    """The figure as a PNG."""
    buffer = BytesIO()
    axes.figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw(history: Sequence[dict[str, Any]], title: str) -> bytes:
    """PNG of the lines of metrics.jsonl. A run without a single step gives an empty frame."""
    axes = new_axes(8, 4.2, grid="y")
    steps = [(r["step"], r["loss"]) for r in history if r.get("loss") is not None]
    held_out = [(r["step"], r["validation_loss"]) for r in history if r.get("validation_loss") is not None]
    if steps:
        x, y = zip(*steps, strict=True)
        axes.plot(x, y, color=GREY, linewidth=1, label="training, each step")
        axes.plot(x, smooth(y), color=BLUE, linewidth=2, label="training, smoothed")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color=ORANGE, linewidth=1.5, markersize=5, label="held out")
        low = min(held_out, key=lambda point: point[1])
        axes.annotate(f"{low[1]:.3f}", low, xytext=(0, -14), textcoords="offset points", ha="center", color=ORANGE)
    title, families = readable(title)
    axes.set_title(title, loc="left", fontsize=11, fontfamily=families, parse_math=False)
    axes.set(xlabel="step", ylabel="loss (nats per target)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(y=0.12)
    if steps or held_out:
        axes.legend(frameon=False, fontsize=9)
    return png(axes)


def readable(text: str) -> tuple[str, list[str]]:
    """`text` and the fonts for it. What no font here can draw becomes an ellipsis, where matplotlib draws boxes."""
    from matplotlib.font_manager import findfont, findSystemFonts, fontManager, get_font

    def eastern(file: str) -> bool:
        return re.search(FONTS, Path(file).name, re.IGNORECASE) is not None

    families = ["DejaVu Sans"]  # comes with matplotlib
    known = set(get_font(findfont(families[0])).get_charmap())
    if not known.issuperset(map(ord, text)) and not any(eastern(font.fname) for font in fontManager.ttflist):
        for file in filter(eastern, findSystemFonts()):  # matplotlib's list is as old as its first use here
            fontManager.addfont(file)
    installed = {font.name for font in fontManager.ttflist if eastern(font.fname)}
    for family in sorted(installed, key=lambda name: (" SC" not in name, name)):  # Chinese forms of shared characters
        if not known.issuperset(map(ord, text)):
            families.append(family)
            known |= set(get_font(findfont(family)).get_charmap())
    drawn = "".join(sign if ord(sign) in known else "\0" for sign in text)
    return re.sub("\0+", "\N{HORIZONTAL ELLIPSIS}", drawn), families


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average over about a twentieth of the run, unbiased at the start."""
    decay = 1 - 1 / max(1.0, len(values) / 20)
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        result.append(total / weight)
    return result
