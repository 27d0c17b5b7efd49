"""A chart shows the numbers of the data, whatever they are, as one picture that is read everywhere."""

from __future__ import annotations

import json
import math
import random
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from luthier.reports import chart
from luthier.reports.chart import (
    COLORS,
    SERIES,
    Axis,
    Canvas,
    Curves,
    Point,
    Scatter,
    curves_chart,
    loss_chart,
    png,
    same,
    scatter_chart,
)
from tests.conftest import use_catalog

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "<script>alert('x')</script> & \"quotes\""
HISTORY = [
    *({"step": n, "loss": 8.0 * 0.9**n, "lr": 1e-3 * n} for n in range(1, 41)),
    {"step": 20, "validation_loss": 1.25},
    {"step": 40, "validation_loss": 1.5},
]


def read(made: Curves | Scatter) -> ElementTree.Element:
    """The SVG as XML: what is not well-formed is an error."""
    return ElementTree.fromstring(made.svg())


def test_the_numbers_of_the_chart_are_those_of_the_run() -> None:
    made = loss_chart(HISTORY, title="a run", base=7.281, kept_step=20)
    curves, rates = made.data()
    found = {line["label"]["en"]: line["points"] for line in curves["lines"]}
    assert found["held out"] == [[0, 7.281], [20, 1.25], [40, 1.5]]
    assert found["training, each step"] == [[n, float(f"{8.0 * 0.9**n:.4g}")] for n in range(1, 41)]
    assert curves["marks"] == [{"x": 20, "text": curves["marks"][0]["text"], "color": "green"}]
    assert curves["marks"][0]["text"]["en"] == "weights kept: step 20" and curves["log"]
    assert rates["lines"][0]["points"][-1] == [40, 0.04]
    texts = [text.text for text in read(made).iter(f"{SVG}text")]
    assert "base 7.281" in texts and "1.250" in texts and "weights kept: step 20" in texts
    assert "learning rate, at most 0.04" in texts and "a run" in texts
    description = read(made).findtext(f"{SVG}desc") or ""
    assert "The lowest held-out loss is 1.25, at step 20." in description == curves["says"]["en"]
    assert read(made).attrib["role"] == "img" and read(made).findtext(f"{SVG}title") == "a run"


@pytest.mark.parametrize("log", [False, True])
def test_a_line_goes_through_its_points(log: bool) -> None:
    x, y = Axis(0, 10, 0, 1000), Axis(1, 100, 500, 100, log=log)
    assert chart.path([(0, 1), (5, 10), (10, 100)], x, y) == (
        "M0.0 500.0L500.0 300.0L1000.0 100.0" if log else "M0.0 500.0L500.0 463.6L1000.0 100.0"
    )


def test_the_axis_is_logarithmic_where_the_losses_lie_far_apart() -> None:
    def labels(made: Curves) -> set[str | None]:
        return {text.text for text in read(made).iter(f"{SVG}text")}

    assert loss_chart(HISTORY).log() and {"0.2", "0.5", "5"} <= labels(loss_chart(HISTORY))
    near = loss_chart([{"step": n, "loss": 2.0 + 0.01 * n} for n in range(9)])
    assert not near.log() and "2.02" in labels(near)
    assert not loss_chart([{"step": 1, "loss": -1.0}, {"step": 2, "loss": 30.0}]).log(), "there is no logarithm"


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"step": 1, "loss": 2.0, "lr": 0.0}],
        [{"step": 3, "validation_loss": 2.0}],
        [{"step": 1, "loss": None}, {"step": 2, "loss": math.nan}, {"step": 2, "validation_loss": math.inf}],
        [{"step": n, "loss": 0.0} for n in range(5)],
        [{"step": n, "loss": 1e-9 * 10**n} for n in range(18)],
        [{"step": 10**7 + n, "loss": 1.0} for n in range(3)],
    ],
    ids=["empty", "one step", "one evaluation", "holes", "zeros", "far apart", "late"],
)
def test_every_history_gives_a_chart(history: list[dict[str, float | None]]) -> None:
    for base in (math.nan, 2.0, 0.0):
        made = loss_chart(history, base=base, kept_step=1)
        svg = made.svg()
        assert "nan" not in svg.lower() and "inf" not in svg
        read(made)
        assert png(svg).startswith(b"\x89PNG")


def test_no_spike_is_lost_in_a_long_run() -> None:
    points = [(float(n), 1.0) for n in range(100_000)]
    points[33_333], points[66_666] = (33_333.0, 50.0), (66_666.0, 0.01)
    kept = chart.reduced(points)
    assert len(kept) <= 2000 and points[33_333] in kept and points[66_666] in kept
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)
    short = points[:1999]
    assert chart.reduced(short) == short


def test_smoothing_does_not_lag() -> None:
    falling = [(float(n), 500.0 - 2 * n) for n in range(200)]
    assert chart.smooth(falling) == [pytest.approx(point) for point in falling], "a straight line stays where it is"
    rng = random.Random(0)
    noisy = [(float(n), 3 + rng.gauss(0, 0.5)) for n in range(1000)]
    even = [y for _, y in chart.smooth(noisy)]
    assert max(abs(y - 3) for y in even) < 0.7 < max(abs(y - 3) for _, y in noisy)
    assert chart.smooth(noisy[:2]) == noisy[:2]


def test_hostile_names_stay_text() -> None:
    point = Point(NASTY, 1.0, 2.0, 1.0, 3.0, front=True)
    for made in (
        loss_chart(HISTORY, title=NASTY),
        curves_chart({NASTY: [(1, 2.0), (2, 1.0)]}),
        scatter_chart([point], cost=same(NASTY), score=same(NASTY), base=1.0),
    ):
        assert "<script" not in made.svg()
        assert NASTY in [text.text for text in read(made).iter(f"{SVG}text")]


def test_both_languages_are_in_a_chart_for_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    use_catalog(monkeypatch, {"held out": "留出集", "base {0}": "基座 {0}"})
    texts = {
        (text.attrib.get("lang") or group.attrib.get("lang"), text.text)
        for group in ElementTree.fromstring(loss_chart(HISTORY, base=7.0).svg(languages=("en", "zh"))).iter()
        for text in group.iter(f"{SVG}text")
    }
    assert {("en", "held out"), ("zh", "留出集"), ("en", "base 7.000"), ("zh", "基座 7.000")} <= texts
    alone = loss_chart(HISTORY, base=7.0).svg(languages=("zh",))
    assert "基座 7.000" in alone and "held out<" not in alone and 'lang="' not in alone


def test_labels_of_a_scatter_lie_apart_and_a_score_is_where_it_belongs() -> None:
    points = [Point(f"method_{n}", 10.0 ** (3 + n / 4), 60 + 3 * (n % 3), 55 + n, 70 + n, n == 0) for n in range(10)]
    canvas = Canvas(560, 340, ["en"])
    spots = [(60 + 45.0 * n, 100 + 30.0 * (n % 3)) for n in range(10)]
    places = list(chart._places([p.name for p in points], spots, spots, canvas, (20, 300)))
    boxes = [
        (x - chart.wide(p.name) if x < spot[0] else x, y - 7, x if x < spot[0] else x + chart.wide(p.name), y + 7)
        for p, spot, (x, y) in zip(points, spots, places, strict=True)
    ]
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    svg = read(scatter_chart(points, cost=same("parameters"), score=same("accuracy"), base=50.0, log=True))
    heights = [float(circle.attrib["cy"]) for circle in svg.iter(f"{SVG}circle") if circle.attrib["r"] == "4.5"][-10:]
    assert sorted(range(10), key=lambda n: heights[n]) == sorted(range(10), key=lambda n: -points[n].y)
    assert "method_0 scores 60, between 55 and 70, at 1,000." in (svg.findtext(f"{SVG}desc") or "")


def test_a_value_that_is_not_finite_is_left_out_of_a_scatter() -> None:
    points = [
        Point("good", 1.0, 2.0, 1.0, 3.0),
        Point("nan", 1.0, math.nan, 1.0, 3.0),
        Point("free", 0.0, 1.0, 1.0, 1.0),
    ]
    made = scatter_chart(points, cost=same("x"), score=same("y"), log=True)
    texts = [text.text for text in read(made).iter(f"{SVG}text")]
    assert "good" in texts and "nan" not in texts and "free" not in texts
    assert [point["name"] for point in made.data()[0]["points"]] == ["good"]
    read(scatter_chart([], cost=same("x"), score=same("y")))


def test_colors_can_be_told_from_the_paper() -> None:
    def light(color: str) -> float:
        parts = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for name, pair in COLORS.items():
        for color, paper in zip(pair, COLORS["paper"], strict=True):
            high, low = sorted((light(color), light(paper)), reverse=True)
            least = {"grid": 1.0, "paper": 1.0, "raw": 3.0}.get(name, 4.5)
            assert (high + 0.05) / (low + 0.05) >= least, (name, color)


def test_pages_draw_in_the_colors_of_the_picture() -> None:
    look = Path(chart.__file__).with_name("look.css").read_text("utf-8")
    script = Path(chart.__file__).with_name("chart.js").read_text("utf-8")
    for name in (*SERIES, "raw"):
        light, dark = COLORS[name]
        assert f"--{name}: light-dark({light}, {dark})" in look
    assert f"SERIES = {json.dumps(SERIES)}" in script


def test_a_picture_has_no_boxes_without_chinese_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    resvg = pytest.importorskip("resvg_py")
    real = resvg.svg_to_bytes
    monkeypatch.setattr(resvg, "svg_to_bytes", lambda **own: drawn.append(own["svg_string"]) or real(**own))
    monkeypatch.setattr(chart, "_eastern_font", lambda: None)
    svg = loss_chart(HISTORY, title="runs/情感分析: lora, привет, α").svg()
    assert png(svg).startswith(b"\x89PNG")
    assert "runs/…: lora, привет, α" in drawn[0] and "情" not in drawn[0]
    monkeypatch.setattr(chart, "_eastern_font", lambda: "/nowhere/NotoSansCJK-Regular.ttc")
    png(svg)
    assert "runs/情感分析: lora" in drawn[1]


def test_the_font_of_the_picture_has_what_it_draws() -> None:
    """Digits and letters leave ink: a picture on a machine without any font has its axis."""
    with_text, without = (Canvas(200, 60, ["en"]) for _ in range(2))
    with_text.text(10, 30, same("0.5 Loss ñ Ж"), "ink")
    assert len(png(with_text.svg("a", "b"))) > len(png(without.svg("a", "b"))) + 500
