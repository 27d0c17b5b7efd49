"""Self-contained HTML pages from the templates in this folder, in every language at once."""

import hashlib
import re
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from luthier.core.language import filled, language, translated
from luthier.core.shell import public
from luthier.core.strict_json import to_json
from luthier.reports.chart import Curves, Scatter, Words, worded

NARROW = {"width": 360.0, "height": 340.0}
"""Size of a chart on a phone; the page has it in both."""


def render(name: str, filters: dict[str, Any], *, drawn: bool = False, **values: Any) -> str:
    """Fill in NAME.html.jinja; `drawn` is whether it has charts, which need a longer script.

    All texts are escaped, the page loads nothing, and no script but its own may run.
    """
    pages = _pages(name)
    pages.filters |= filters
    return pages.get_template(f"{name}.html.jinja").render(values, **_own(drawn))


@cache
def _own(drawn: bool) -> dict[str, Any]:
    """Look and script of a page; where charts are drawn, chart.js and uPlot with its license are part of them."""
    look, script = _text("look.css"), _text("page.js")
    if drawn:
        look = _text("vendor/uPlot.min.css") + look
        license = f"/*\n{_text('vendor/uPlot.LICENSE')}*/"
        script = "\n".join((license, _text("vendor/uPlot.iife.min.js"), _text("chart.js"), script))
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"look": Markup(look), "script": Markup(script), "script_hash": digest}


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@cache
def _pages(name: str) -> Environment:
    """Where one page is made; compiling its template takes longer than filling it in."""
    loader = PackageLoader("luthier.reports", ".")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"public": public, "place": short_place, "both": both, "show": show, "count": lambda n: f"{n:,}"}
    pages.globals |= {"_": _both, "controls": controls, "language": lambda: "zh" if language() == "zh" else "en"}
    return pages


class InBoth(Markup):
    """Text on a page in every language, of which the page shows one; `alone` has each by itself."""

    alone: dict[str, Markup]


def _both(message: str, *values: object) -> InBoth:
    """`_("{0} rows", 5)` in a template: the message in every language. Values are escaped, and may be in both too."""
    places, made = [f"{{{number}}}" for number in range(len(values))], {}
    for into in ("en", "zh"):
        own = [value.alone[into] if isinstance(value, InBoth) else value for value in values]
        text = Markup(escape(filled(message, *places, into=into)))
        made[into] = text.format(*own) if own else text
    return spans(made)


def both(text: str) -> InBoth:
    """A sentence that comes finished from a result, in every language; paths in it name no folder of the user's."""
    text = public(text)
    return spans({"en": text, "zh": translated(text, into="zh", inside=True)})


def show(text: Words) -> InBoth:
    """Words of `reports.chart` on a page."""
    return spans(text)


def spans(text: Mapping[str, str]) -> InBoth:
    """A span for each language, or the text alone where it is the same in all."""
    alone = {into: Markup(escape(each)) for into, each in text.items()}
    parts = [Markup('<span lang="{}">{}</span>').format(into, each) for into, each in alone.items()]
    made = InBoth(alone["en"] if alone["en"] == alone["zh"] else Markup("").join(parts))
    made.alone = alone
    return made


def short_place(where: str) -> str:
    """Where a row is from, short enough for a table: the name of the file without its folders."""
    file, colon, row = where.partition(": ")
    return re.split(r"[/\\]", file)[-1] + colon + row


def charts(chart: Curves | Scatter, **size: float) -> Markup:
    """A chart in every language: its values for the script, and a picture for a wide page and for a phone.

    The pictures are seen where no script runs, and on paper.
    """
    wide, narrow = (Markup(chart.svg(**each, languages=("en", "zh"))) for each in (size, NARROW))
    frame = '<div data-chart="{}"><div class="wide-chart">{}</div><div class="narrow-chart">{}</div></div>'
    return Markup(frame).format(to_json(chart.data(), ensure_ascii=False), wide, narrow)


def controls() -> str:
    """What the script writes beside tables and charts, as JSON."""
    made = {
        "search": worded("search in this table"),
        "all": worded("all"),
        "log": worded("log axis"),
        "whole": worded("show all"),
        "curves": worded("Point at the curve for its values; drag over a part of it to enlarge it."),
        "front": worded("Point at a method for its values; drag over a part to enlarge it."),
    }
    return to_json(made, ensure_ascii=False)
