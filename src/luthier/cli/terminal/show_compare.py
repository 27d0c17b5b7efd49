"""The table of a comparison on the terminal."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.markup import escape

from luthier.cli.terminal.progress import COLORS, console, table
from luthier.core.units import duration, gigabytes
from luthier.reports.compare_report import count, kilobytes, share
from luthier.reports.run_report import figure

COLUMNS: list[tuple[str, int, Callable[[Mapping[str, Any]], str]]] = [
    ("trained", 76, lambda row: count(row["trainable"])),
    ("share", 112, lambda row: share(row["share"])),
    ("file", 88, lambda row: kilobytes(row["adapter_bytes"])),
    ("memory", 100, lambda row: gigabytes(row["memory"])),
    ("tokens/s", 124, lambda row: f"{row['tokens_per_second']:,.0f}"),
    ("training", 66, lambda row: duration(row["seconds"])),
]
"""Name, minimum terminal width, and cell."""


def show_comparison(body: Mapping[str, Any]) -> None:
    """Show score, interval, significance and costs of each method, failed methods, and where the page is."""
    if done := [row for row in body["rows"] if row["status"] == "done"]:
        seeds = len(body["seeds"])
        console.print(
            f"{body['examples']} {body['measured_on']} examples; {body['steps']} steps and {body['tokens']:,} tokens "
            f"each, {seeds} seed{'s' * (seeds > 1)}"
        )
        wide = [(name, cell) for name, least, cell in COLUMNS if console.width >= least]
        metric = body["metric"]
        heads = ("method", f">{metric.replace('_', ' ')}", ">95 % CI", "vs. best", *(f">{name}" for name, _ in wide))
        shown = table(*heads, wrap=False)
        if body["base"]:
            shown.add_row("base model", *_score(metric, body["base"]), "", *[""] * len(wide))
        for row in done:
            verdict = row["against"].get("best", {}).get("verdict", "the best" if row["arm"] == body["best"] else "")
            costs = (cell(row) for _, cell in wide)
            color = COLORS.get(verdict, "dim")
            shown.add_row(row["arm"], *_score(metric, row["score"]), f"[{color}]{verdict}[/]", *costs)
        console.print(shown)
        console.print(f"  better or worse: Holm-adjusted p < 0.05 over {body['comparisons']} comparisons")
        if seeds == 1:
            console.print("  one seed: intervals do not include seed variance; --seeds 3 measures it")
    for row in body["rows"]:
        if row["status"] != "done":
            console.print(f"  [yellow]{row['arm']}: {row['status']}: {escape(row['reason'])}[/]")
    console.print(f"  report: [bold]{escape(body['folder'])}/compare.html[/]")


def _score(metric: str, score: Mapping[str, float]) -> tuple[str, str]:
    low, high = (figure(metric, score[key]).removesuffix(" %") for key in ("low", "high"))
    return figure(metric, score["value"]), f"{low} to {high}"
