"""What results look like in a notebook: tables, a page in a frame, and the curve. Everything is escaped."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from luthier.core.language import translated

CELL = "padding:.2em .8em;text-align:{};border-top:1px solid #8884"
SOFT = "opacity:.7;font-size:90%"
BAR = "height:.5em;border-radius:.3em;background:linear-gradient(to right,#2b6cb0 {0:.1f}%,#8884 {0:.1f}%)"


class Page(os.PathLike[str]):
    """A self-contained HTML page on disk: a path, which a notebook shows in a frame."""

    def __init__(self, path: Path, height: int = 600) -> None:
        self.path, self.height = path, height

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Page({str(self.path)!r})"

    def _repr_html_(self) -> str:
        if not self.path.is_file():
            return soft(f"{self.path} is not written yet")
        frame = f'width="100%" height="{self.height}" style="border:0" sandbox="allow-scripts"'
        return f'<iframe {frame} srcdoc="{escape(self.path.read_text(encoding="utf-8"))}"></iframe>'


def said(text: str) -> Markup:
    """A sentence of ours in the user's language, escaped."""
    return escape(translated(text))


def head(text: str) -> Markup:
    """A heading; texts of the data may be part of it."""
    return Markup("<p><b>{}</b></p>").format(text)


def soft(text: str) -> Markup:
    """A line of less weight."""
    return Markup('<div style="{}">{}</div>').format(SOFT, said(text))


def html_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """A table; columns whose name begins with > are aligned right. Cells are escaped unless they are Markup."""
    sides = [CELL.format("right" if name.startswith(">") else "left") for name in columns]
    names = [said(name.removeprefix(">")) for name in columns]

    def line(cells: Iterable[Any], tag: str) -> Markup:
        made = (f'<{tag} style="{side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True))
        return Markup(f"<tr>{''.join(made)}</tr>")

    body = [line(names, "th"), *(line(row, "td") for row in rows)]
    return Markup(f'<table style="border-collapse:collapse">{"".join(body)}</table>')


def bar(share: float) -> Markup:
    """A bar that is filled to this share, from 0 to 1."""
    return Markup(f'<div style="{BAR.format(100 * min(1.0, max(0.0, share)))}"></div>')


def loss_svg(history: Sequence[Mapping[str, Any]]) -> Markup:
    """The loss of the lines of metrics.jsonl as inline SVG; nothing before the second step."""
    if sum("loss" in line for line in history) < 2:
        return Markup()
    from luthier.reports.chart import loss_chart

    return Markup('<div style="max-width:640px">{}</div>').format(Markup(loss_chart(history).svg(640, 300)))
