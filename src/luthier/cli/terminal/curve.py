"""A loss curve as text: dots of Braille characters, two by four in each."""

import math
from collections.abc import Sequence

from rich.text import Text

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of each dot of a Braille character, by row and column."""
AXIS = 8
"""Cells of the axis on the left, with its line."""
HELD_OUT = "◆"


def braille_curve(
    losses: Sequence[tuple[int, float]], held_out: Sequence[tuple[int, float]], steps: int, width: int, height: int
) -> Text:
    """The losses of (step, loss), and those on held-out rows as diamonds, from step 0 to `steps`.

    `width` and `height` are cells, with the axes. The loss axis is logarithmic where all values are above zero. A dot
    is the mean of the steps that share its column.
    """
    columns, rows = max(8, width - AXIS), max(3, height - 1)
    values = [loss for _, loss in (*losses, *held_out)]
    if not values:
        return Text("\n" * (height - 1))
    scale = math.log if min(values) > 0 else float
    low, high = scale(min(values)), scale(max(values))
    span = (high - low) or 1.0

    def down(loss: float, dots: int) -> int:
        return round((high - scale(loss)) / span * (dots - 1))

    cells = [[0] * columns for _ in range(rows)]
    sums: dict[int, list[float]] = {}
    for step, loss in losses:
        sums.setdefault(min(2 * columns - 1, step * 2 * columns // max(1, steps)), []).append(loss)
    points = [(x, down(sum(found) / len(found), 4 * rows)) for x, found in sorted(sums.items())]
    for (left, y), (right, end) in zip(points[:1] + points, points, strict=False):  # a line from dot to dot
        parts = max(1, right - left, abs(end - y))
        for part in range(parts + 1):
            x, dot = left + (right - left) * part // parts, y + round((end - y) * part / parts)
            cells[dot // 4][x // 2] |= DOTS[dot % 4][x % 2]
    marks = {(down(loss, rows), min(columns - 1, step * columns // max(1, steps))) for step, loss in held_out}
    labels = {0: max(values), rows - 1: min(values)}
    text = Text()
    for row, line in enumerate(cells):
        label = f"{labels[row]:.4g}" if row in labels else ""
        text.append(f"{label:>{AXIS - 2}.{AXIS - 2}} │", style="dim")
        for column, dots in enumerate(line):
            held = (row, column) in marks
            text.append(HELD_OUT if held else chr(0x2800 + dots) if dots else " ", style="magenta" if held else "cyan")
        text.append("\n")
    text.append(f"{'':>{AXIS}}0{f'{steps:,}':>{columns - 1}}", style="dim")
    return text
