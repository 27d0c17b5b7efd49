"""Charts as inline SVG: the same picture on a page, in a notebook, in a tracker and, by resvg, as a PNG.

Colors are those of a light page; a style inside the SVG changes them where the reader prefers a dark one. `data` has
the values for chart.js, by which a page with a script draws the chart in place of the picture.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from luthier.core.language import filled, language, translated

WIDTH, HEIGHT = 860, 360
COLORS = {
    "ink": ("#1c2430", "#e6eaf0"),
    "soft": ("#5c6878", "#9aa6b5"),
    "grid": ("#dfe4ea", "#323b47"),
    "raw": ("#8b95a5", "#748092"),
    "blue": ("#1f5fa8", "#78aeea"),
    "orange": ("#b24a14", "#f09a62"),
    "green": ("#1a7f45", "#58c288"),
    "violet": ("#8a3fa0", "#cf9be0"),
    "olive": ("#806600", "#d6b84a"),
    "teal": ("#00707b", "#4fc3cf"),
    "paper": ("#ffffff", "#161b22"),
}
"""Name -> on a light page, on a dark one. What is read as text has a contrast of 4.5 with the paper, lines have 3."""
SERIES = ("blue", "orange", "green", "violet", "olive", "teal")
"""Colors of the curves with the best scores; the others are gray."""
FONT = Path(__file__).with_name("font") / "DejaVuSans.ttf"
"""Latin, Greek and Cyrillic for the PNG, so that it does not depend on what a machine has installed."""
EASTERN = r"(sans|gothic).*cjk.*regular|sourcehansans.*regular|wqy|msyh|simhei|pingfang|hiragino|heiti|arial ?unicode"
"""Names of font files with Chinese, Japanese and Korean, on Linux, Windows and macOS."""
FOLDERS: tuple[str, ...] = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "C:/Windows/Fonts",
)
FOLDERS += ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts")
HAN = r"\u2e80-\u303f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
DRAWN = r" -~\xa0-\u017f\u0391-\u03c9\u0400-\u045f\u2010-\u2026\u2190-\u2193\u2212\u2248\u2264\u2265"
"""What the font above has, and what those of East Asia have, as ranges of a regular expression."""
MOST = 2000
"""Points of a line; more are reduced to the least and the greatest of each part, so that no spike is lost."""
LOG_FROM = 20.0
"""The logarithmic axis is shown first where the greatest value is so many times the least."""
DISTANCES, DIRECTIONS = (9, 20, 34, 50, 68, 88), 16
"""Where a label may stand around its point: the nearest place that is free."""

Words = dict[str, str]
Points = Sequence[tuple[float, float]]
Line = tuple[Words, str, str, Points]
"""Name, color, kind ("line", "thin", "dotted") and points of a line."""


def worded(message: str, *values: object) -> Words:
    """A message with numbered places in every language that pages speak."""
    return {into: filled(message, *values, into=into) for into in ("en", "zh")}


def same(text: str) -> Words:
    """A text that is the same in every language: a name or a number."""
    return {"en": text, "zh": text}


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = math.log(max(value, self.low)) if self.log else value
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values inside, about as many as wanted."""
        if self.log:
            found: list[float] = []
            for steps in ((1, 2, 5), (1, 3), (1,)):
                powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                found = [m * 10.0**p for p, m in product(powers, steps) if self.low <= m * 10.0**p <= self.high]
                if len(found) <= most + 1:
                    break
            if len(found) > most + 1:
                found = found[:: math.ceil(len(found) / most)]
            if len(found) > 1:
                return found
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def spread(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    """Least and greatest value of an axis for these values, with some room."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.06, 1.03)
        return low / room, high * room
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.4 * high else low - room), high + room


def short(value: float) -> str:
    """A value beside an axis: `0.02`, `1,500`, `2.5 M`."""
    for size, unit in ((1e9, " G"), (1e6, " M")):
        if abs(value) >= size:
            return f"{value / size:,.4g}{unit}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


class Canvas:
    """The parts of one SVG, in the order in which they are drawn."""

    def __init__(self, width: float, height: float, languages: Sequence[str]) -> None:
        self.width, self.height, self.languages = width, height, languages
        self.parts: list[str] = []

    def add(self, part: str) -> None:
        """Add an element as it is."""
        self.parts.append(part)

    def line(self, x: float, y: float, x2: float, y2: float, color: str, width: float = 1, dash: str = "") -> None:
        """A straight line."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.add(f'<path d="M{x:.1f} {y:.1f}L{x2:.1f} {y2:.1f}" {stroke(color, width)}{dashed}/>')

    def text(self, x: float, y: float, text: Words, color: str = "soft", anchor: str = "start", more: str = "") -> None:
        """A text in every language of this chart, with a halo, so that lines do not cross it out."""
        color = f'class="f-{color} s-paper" fill="{COLORS[color][0]}" stroke="{COLORS["paper"][0]}" stroke-width="3"'
        halo = f'{color} paint-order="stroke" stroke-linejoin="round"'
        for into in self.languages:
            own = f' lang="{into}"' if len(self.languages) > 1 else ""
            place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
            self.add(f"<text{own} {place} {halo} {more}>{escape(text[into])}</text>")

    def legend(self, entries: Sequence[tuple[Words, str, str]], x: float, y: float) -> float:
        """Swatch and name of each line (name, color, kind) in rows from x, y; returns the height of the rows."""
        most = 0.0
        for into in self.languages:
            self.add(f'<g lang="{into}">' if len(self.languages) > 1 else "<g>")
            left, down = x, y
            one = Canvas(self.width, self.height, [into])
            for name, color, kind in entries:
                size = 30 + wide(name[into]) + 14
                if left > x and left + size > self.width - 8:
                    left, down = x, down + 19
                if kind == "point":
                    one.add(f'<circle cx="{left + 11:.1f}" cy="{down - 4:.1f}" r="4.5" {area(color)}/>')
                else:
                    dash = {"dots": "2 3", "dashes": "5 4"}.get(kind, "")
                    one.line(left, down - 4, left + 22, down - 4, color, 1.2 if kind == "thin" else 2.2, dash)
                if kind == "dotted":
                    one.add(f'<circle cx="{left + 11:.1f}" cy="{down - 4:.1f}" r="3.2" {area(color)}/>')
                one.text(left + 28, down, name, "ink")
                left += size
            self.add("".join(one.parts) + "</g>")
            most = max(most, down - y + 19)
        return most

    def svg(self, title: str, description: str) -> str:
        """The whole SVG."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {self.width:g} '
            f'{self.height:g}" width="{self.width:g}" height="{self.height:g}" font-family="{FAMILIES}" '
            f'font-size="12"><title>{escape(title)}</title><desc>{escape(description)}</desc>'
            f'<style>{STYLE}</style><rect width="100%" height="100%" {area("paper")}/>{"".join(self.parts)}</svg>'
        )


ROUND = 'stroke-linejoin="round"'
FAMILIES = "system-ui,Noto Sans,Noto Sans CJK SC,PingFang SC,Microsoft YaHei,sans-serif"
STYLE = "svg.chart{max-width:100%;height:auto}"
STYLE += "@media (prefers-color-scheme:dark){"
STYLE += "".join(f".chart .s-{n}{{stroke:{dark}}}.chart .f-{n}{{fill:{dark}}}" for n, (_, dark) in COLORS.items()) + "}"


def stroke(color: str, width: float) -> str:
    """Attributes of a line."""
    return f'class="s-{color}" stroke="{COLORS[color][0]}" stroke-width="{width:g}" fill="none"'


def area(color: str) -> str:
    """Attributes of an area or a text."""
    return f'class="f-{color}" fill="{COLORS[color][0]}"'


def wide(text: str) -> float:
    """About as many pixels as a text of 12 pixels height takes."""
    return sum(12.0 if ord(sign) > 0x2E80 else 6.5 for sign in text)


def path(points: Points, x: Axis, y: Axis) -> str:
    """The `d` of a line through points; a single one becomes a dot."""
    spots = [f"{x.at(a):.1f} {y.at(b):.1f}" for a, b in points]
    return f"M{'L'.join(spots)}" + ("h0" if len(spots) == 1 else "") if spots else ""


def reduced(points: Points, most: int = MOST) -> list[tuple[float, float]]:
    """At most so many points: the least and the greatest of each part of equal length, in their order."""
    if len(points) <= most:
        return list(points)
    bins, kept = most // 2, []
    for number in range(bins):
        part = points[number * len(points) // bins : (number + 1) * len(points) // bins]
        ends = {min(part, key=lambda each: each[1]), max(part, key=lambda each: each[1])}
        kept += sorted(ends)
    return kept


def smooth(points: Points) -> list[tuple[float, float]]:
    """A straight line fitted to the points around each (a fiftieth of the run on both sides), read off at its place.

    Unlike a moving average it does not lag behind a falling loss, and it has no bias at the ends. Takes O(n).
    """
    count = len(points)
    if count < 3:
        return list(points)
    radius = max(2, count // 50)
    center, low, high = points[count // 2][0], min(y for _, y in points), max(y for _, y in points)
    sums = [(0.0, 0.0, 0.0, 0.0)]
    for x, y in points:
        x0, (a, b, c, d) = x - center, sums[-1]
        sums.append((a + x0, b + y, c + x0 * x0, d + x0 * y))
    result = []
    for place, (x, _) in enumerate(points):
        first, last = max(0, place - radius), min(count, place + radius + 1)
        n, at = last - first, x - center
        sx, sy, sxx, sxy = (after - before for before, after in zip(sums[first], sums[last], strict=True))
        across = n * sxx - sx * sx
        slope = (n * sxy - sx * sy) / across if across > 0 else 0.0
        result.append((x, min(high, max(low, sy / n + slope * (at - sx / n)))))
    return result


def series(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the lines of metrics.jsonl that have a finite value."""
    return [(line["step"], line[key]) for line in history if line.get(key) is not None and math.isfinite(line[key])]


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines over the steps, with the learning rate below: a picture, or what chart.js draws."""

    lines: Sequence[Line]
    label: Words
    """What the lines are, with the unit."""
    told: Sequence[str]
    """English sentences for those who do not see the chart."""
    title: str = ""
    marks: Sequence[tuple[tuple[float, float], Words]] = ()
    kept_step: int | None = None
    rates: Points = ()

    def values(self) -> list[float]:
        """The values of all lines."""
        return [value for *_, points in self.lines for _, value in points]

    def log(self) -> bool:
        """Is a logarithmic axis the better one?"""
        values = self.values() or [0.0]
        return min(values) > 0 and max(values) > LOG_FROM * min(values)

    def svg(self, width: float = WIDTH, height: float = HEIGHT, languages: Sequence[str] = ()) -> str:
        """The chart as inline SVG, with its words in `languages`, by default the user's."""
        canvas = Canvas(width, height, languages or [_one_language()])
        top, left, right = self._head(canvas), 56.0, width - 14
        bottom = height - (80 if self.rates else 36)
        last = max([point[0] for *_, points in self.lines for point in points], default=0) or 1
        x = Axis(-last * 0.012, last * 1.012, left, right)
        y = Axis(*spread(self.values() or [0.0, 1.0], log=self.log()), bottom, top, self.log())
        _x_ticks(canvas, x, bottom, self.rates)
        self._draw(canvas, x, y)
        if not self.lines:
            canvas.text((left + right) / 2, (top + bottom) / 2, worded("no step was taken yet"), anchor="middle")
        into = canvas.languages[0]
        return canvas.svg(self.title or translated("Loss over the steps", into), _sentences(self.told)[into])

    def data(self) -> list[dict[str, Any]]:
        """The same for chart.js: the lines, and the learning rate as a chart of its own; none without a line."""
        shared = {"kind": "curves", "x": worded("step")}
        lines = [
            {"label": name, "color": color, "thin": kind == "thin", "dots": kind == "dotted", "points": _brief(points)}
            for name, color, kind, points in self.lines
        ]
        kept = {"x": self.kept_step, "text": _kept_words(self.kept_step), "color": "green"} if self.kept_step else None
        own = {"title": self.label, "says": _sentences(self.told), "log": self.log(), "marks": [kept] if kept else []}
        made = [{**shared, **own, "lines": lines}] if lines else []
        if lines and self.rates:
            name = worded("learning rate")
            line = {"label": name, "color": "teal", "points": _brief(reduced(self.rates, 400))}
            made.append({**shared, "title": name, "says": same(""), "lines": [line], "choice": False, "height": 130})
        return made

    def _head(self, canvas: Canvas) -> float:
        """Title and legend; returns where the chart begins below them."""
        top = 8.0
        if self.title:
            canvas.text(8, top + 12, same(self.title), "ink", more='font-size="14" font-weight="600"')
            top += 24
        gray = [line for line in self.lines if line[1] == "raw"]
        entries = [line[:3] for line in self.lines if line[1] != "raw" or len(gray) == 1]
        if len(gray) > 1:
            entries.append((worded("the other {0}", len(gray)), "raw", "thin"))
        if self.rates:
            most = f"{max(rate for _, rate in self.rates):.3g}"
            entries.append((worded("learning rate, at most {0}", most), "teal", "line"))
        if self.kept_step:
            entries.append((_kept_words(self.kept_step), "green", "dashes"))
        if entries:
            top += canvas.legend(entries, 8, top + 12)
        canvas.text(8, top + 12, self.label)
        return top + 30  # room for what stands above the highest point

    def _draw(self, canvas: Canvas, x: Axis, y: Axis) -> None:
        """Grid, lines and marks."""
        for tick in y.ticks(6):
            canvas.line(x.start, y.at(tick), x.end, y.at(tick), "grid")
            canvas.text(x.start - 7, y.at(tick) + 4, same(short(tick)), anchor="end")
        if self.kept_step:
            canvas.line(x.at(self.kept_step), y.end, x.at(self.kept_step), y.start, "green", 1.5, "5 4")
        most = min(MOST, int(2 * canvas.width))
        for _, color, kind, points in self.lines:
            shown = reduced(points, most if kind == "thin" else most // 2)
            canvas.add(f'<path d="{path(shown, x, y)}" {stroke(color, 1 if kind == "thin" else 2)} {ROUND}/>')
            if kind == "dotted" or len(shown) == 1:
                dots = "".join(path([point], x, y) for point in shown)
                canvas.add(f'<path d="{dots}" {stroke(color, 7)} stroke-linecap="round"/>')
        for (step, value), text in self.marks:
            near = x.at(step) > x.end - 60
            place = x.at(step) + (-6 if near else 6), y.at(value) - 9
            canvas.text(*place, text, "orange", "end" if near else "start")


def loss_chart(
    history: Sequence[Mapping[str, Any]], *, title: str = "", base: float | None = None, kept_step: int | None = None
) -> Curves:
    """Loss of each step and smoothed, held-out loss, and learning rate over the steps.

    `history` has lines of metrics.jsonl (`step` with `loss` and `lr`, or with `validation_loss`), losses in nats per
    target; what is missing or not finite is left out, and no line at all gives an empty frame. `base` is the held-out
    loss of the untouched base, drawn as step 0; `kept_step` marks the weights that the run kept.
    """
    raw, held, rates = series(history, "loss"), series(history, "validation_loss"), series(history, "lr")
    if base is not None and math.isfinite(base):
        held = [(0, base), *held]
    even = smooth(raw)
    lines: list[Line] = []
    told = []
    if raw:
        lines.append((worded("training, each step"), "raw", "thin", reduced(raw)))
        lines.append((worded("training, smoothed"), "blue", "line", reduced(even)))
        (a, first), (b, last) = even[0], even[-1]
        told.append(f"The smoothed training loss went from {first:.4g} at step {a} to {last:.4g} at step {b}.")
    if held:
        lines.append((worded("held out"), "orange", "dotted", reduced(held)))
        least = min(held, key=lambda point: point[1])
        told.append(f"The lowest held-out loss is {least[1]:.4g}, at step {least[0]}.")
    marks = []
    if base is not None and held:
        marks.append((held[0], worded("base {0}", f"{held[0][1]:.3f}")))
    kept = next((point for point in held if point[0] == kept_step and point[0]), None)
    if kept is not None:
        marks.append((kept, same(f"{kept[1]:.3f}")))
    label = worded("loss, nats per target")
    return Curves(lines, label, told or ["No step was taken yet."], title, marks, kept_step, rates)


def curves_chart(curves: Mapping[str, Points], *, title: str = "", held_out: bool = True) -> Curves:
    """Losses of several methods over the steps, the best method first: those without a color of their own are gray."""
    found = [(name, [p for p in points if math.isfinite(p[1])]) for name, points in curves.items()]
    named = [(name, points) for name, points in found if points]
    lines: list[Line] = [
        (same(name), color, "line", reduced(points)) for (name, points), color in zip(named, SERIES, strict=False)
    ]
    others = [(same(name), "raw", "thin", reduced(points)) for name, points in named[len(SERIES) :]]
    label = worded("held-out loss, nats per target") if held_out else worded("training loss, nats per target")
    told = [f"{name} ends at a loss of {points[-1][1]:.4g}." for name, points in named]
    return Curves([*others, *lines], label, told or ["No step was taken yet."], title)


def _one_language() -> str:
    return "zh" if language() == "zh" else "en"


def _kept_words(step: int | None) -> Words:
    return worded("weights kept: step {0}", f"{step:,}")


def _sentences(told: Sequence[str]) -> Words:
    return {into: " ".join(translated(each, into) for each in told) for into in ("en", "zh")}


def _brief(points: Points) -> list[list[float]]:
    """Points for a page, in four digits."""
    return [[step, float(f"{value:.4g}")] for step, value in points]


def _x_ticks(canvas: Canvas, x: Axis, bottom: float, rates: Points) -> None:
    """Steps below the chart, and between them and it, if there are any, the learning rates."""
    left, right, floor = x.start, x.end, canvas.height - 36
    if rates:
        y = Axis(0, max(rate for _, rate in rates) or 1.0, floor - 1, bottom + 16)
        canvas.add(f'<path d="{path(reduced(rates, 400), x, y)}" {stroke("teal", 1.5)} {ROUND}/>')
    for tick in x.ticks(max(2, int((right - left) / 80))):
        if tick == int(tick):
            canvas.line(x.at(tick), floor, x.at(tick), floor + 4, "soft")
            canvas.text(x.at(tick), floor + 17, same(short(tick)), anchor="middle")
    canvas.line(left, floor, right, floor, "soft")
    canvas.text(right, floor + 31, worded("step"), anchor="end")


@dataclass(frozen=True, slots=True)
class Point:
    """A method in `scatter_chart`: its cost x, its score y with an interval, and whether it is on the Pareto front."""

    name: str
    x: float
    y: float
    low: float
    high: float
    front: bool = False


@dataclass(frozen=True, slots=True)
class Scatter:
    """Score over cost with 95 % intervals, the Pareto front as a line, and the base's score behind everything."""

    points: Sequence[Point]
    cost: Words
    score: Words
    """Names of the axes."""
    base: float | None = None
    log: bool = False
    """Is the axis of the cost logarithmic?"""

    def svg(self, width: float = WIDTH, height: float = HEIGHT, languages: Sequence[str] = ()) -> str:
        """The chart as inline SVG, with its words in `languages`, by default the user's."""
        canvas = Canvas(width, height, languages or [_one_language()])
        shown, base = self.points, self.base
        entries = [(worded("a method, with its 95 % interval"), "blue", "point")]
        entries.append((worded("best score for its cost"), "orange", "dotted"))
        if base is not None:
            entries.append((worded("untouched base"), "soft", "dots"))
        top, left, right, bottom = 8.0, 56.0, width - 14, height - 36
        top += canvas.legend(entries, 8, top + 12)
        canvas.text(8, top + 12, self.score)
        top += 22
        ys = [value for p in shown for value in (p.low, p.high)] + ([] if base is None else [base])
        x = Axis(*_room([p.x for p in shown] or [1.0], log=self.log), left, right, self.log)
        y = Axis(*spread(ys or [0.0, 1.0], log=False), bottom, top)
        for tick in y.ticks(6):
            canvas.line(left, y.at(tick), right, y.at(tick), "grid")
            canvas.text(left - 7, y.at(tick) + 4, same(short(tick)), anchor="end")
        for tick in x.ticks(max(2, int((right - left) / 80))):
            canvas.line(x.at(tick), bottom, x.at(tick), bottom + 4, "soft")
            canvas.text(x.at(tick), bottom + 17, same(short(tick)), anchor="middle")
        canvas.line(left, bottom, right, bottom, "soft")
        canvas.text(right, height - 5, self.cost, anchor="end")
        if base is not None:
            canvas.line(left, y.at(base), right, y.at(base), "soft", 1.5, "2 3")
        front = sorted((p.x, p.y) for p in shown if p.front)
        canvas.add(f'<path d="{path(front, x, y)}" {stroke("orange", 1.5)}/>')
        for p in shown:
            canvas.line(x.at(p.x), y.at(p.low), x.at(p.x), y.at(p.high), "raw", 1.2)
        for p in shown:
            color = area("orange" if p.front else "blue")
            canvas.add(f'<circle cx="{x.at(p.x):.1f}" cy="{y.at(p.y):.1f}" r="4.5" {color}/>')
        ends = [(x.at(a), y.at(b)) for a, b in front]
        crossed = [
            (a + (c - a) * n / 100, b + (d - b) * n / 100) for (a, b), (c, d) in pairwise(ends) for n in range(101)
        ]
        crossed += [] if base is None else [(left + n, y.at(base)) for n in range(0, int(right - left), 6)]
        self._names(canvas, [(x.at(p.x), y.at(p.y)) for p in shown], crossed, (top, bottom))
        into = canvas.languages[0]
        return canvas.svg(f"{self.score[into]} / {self.cost[into]}", _sentences(self._told())[into])

    def data(self) -> list[dict[str, Any]]:
        """The same for chart.js; empty without a point."""
        base = None if self.base is None else {"value": self.base, "label": worded("untouched base")}
        own = {"title": self.score, "says": _sentences(self._told()), "x": self.cost, "log": self.log, "base": base}
        return [{"kind": "front", **own, "points": list(map(asdict, self.points))}] if self.points else []

    def _told(self) -> list[str]:
        return [f"{p.name} scores {p.y:.4g}, between {p.low:.4g} and {p.high:.4g}, at {p.x:,.4g}." for p in self.points]

    def _names(self, canvas: Canvas, spots: Points, crossed: Points, heights: tuple[float, float]) -> None:
        """The name of each point beside it, or with a line to it."""
        places = _places([p.name for p in self.points], spots, crossed, canvas, heights)
        for p, spot, place in zip(self.points, spots, places, strict=True):
            if math.hypot(place[0] - spot[0], place[1] - spot[1]) > 22:
                canvas.line(*spot, place[0], place[1], "raw", 0.7)
            canvas.text(place[0], place[1] + 4, same(p.name), "ink", "end" if place[0] < spot[0] else "start")


def scatter_chart(
    points: Sequence[Point], *, cost: Words, score: Words, base: float | None = None, log: bool = False
) -> Scatter:
    """Scores over costs. A value that is not finite is left out, and one without a logarithm where `log` needs it."""
    shown = [p for p in points if all(map(math.isfinite, (p.x, p.y, p.low, p.high))) and (p.x > 0 or not log)]
    return Scatter(shown, cost, score, base, log)


def _room(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    """Least and greatest cost, with room for names beside the points at the ends."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.12, 1.3)
        return low / room, high * room
    room = (high - low) * 0.12 or abs(high) * 0.3 or 1.0
    return max(0.0, low - room) if low >= 0 else low - room, high + room


def _places(
    names: Sequence[str], spots: Points, crossed: Points, canvas: Canvas, heights: tuple[float, float]
) -> Iterator[tuple[float, float]]:
    """Where each name begins (or ends, where it is to the left of its point): on no other name, no point and no line.

    `crossed` are places of lines, which a name covers where there is no better place. It stays between `heights`.
    """
    top, bottom = heights
    turns = [(step + 1) // 2 * (1 if step % 2 else -1) * 2 * math.pi / DIRECTIONS for step in range(DIRECTIONS)]
    taken: list[tuple[float, float, float, float]] = []
    for name, (x, y) in zip(names, spots, strict=True):
        tried: list[tuple[int, int, float, float, tuple[float, float, float, float]]] = []
        for distance, turn in product(DISTANCES, turns):  # to the right first, then around, then farther out
            at, level = x + distance * math.cos(turn), y + distance * math.sin(turn)
            start = at - wide(name) if at < x else at
            box = start, level - 7, start + wide(name), level + 7
            inside = box[0] >= 58 and box[2] <= canvas.width - 8 and box[1] >= top and box[3] <= bottom
            clash = sum(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken)
            clash += sum(
                box[0] - 4 < a < box[2] + 4 and box[1] - 2 < b < box[3] + 2 for a, b in spots if (a, b) != (x, y)
            )
            covers = any(box[0] < a < box[2] and box[1] < b < box[3] for a, b in crossed)
            tried.append((2 * clash + covers + 10 * (not inside), len(tried), at, level, box))
            if not tried[-1][0]:
                break
        _, _, at, level, box = min(tried)
        taken.append(box)
        yield at, level


def png(svg: str) -> bytes:
    """A chart as a PNG, half as large again as its pixels; what no font here can draw becomes an ellipsis.

    The font of the chart comes with Luthier; Chinese, Japanese and Korean need one that is installed.
    """
    import resvg_py

    eastern = _eastern_font() if re.search(f"[{HAN}]", svg) else None
    svg = re.sub(f"[^{DRAWN}{HAN if eastern else ''}\n]+", "\N{HORIZONTAL ELLIPSIS}", svg)
    svg = svg.replace(FAMILIES, "DejaVu Sans,Noto Sans CJK SC")
    fonts = [str(FONT), *([eastern] if eastern else [])]
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=1.5, skip_system_fonts=True, font_files=fonts))


def _eastern_font() -> str | None:
    """The file of a font with Chinese characters; None where none is installed in the usual folders."""
    for folder in FOLDERS:
        for file in sorted(Path(folder).expanduser().rglob("*.[to]t[cf]")):
            if re.search(EASTERN, file.name, re.IGNORECASE):
                return str(file)
    return None
