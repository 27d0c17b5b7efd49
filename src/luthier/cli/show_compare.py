"""The table of a comparison on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from luthier.cli.progress import console
from luthier.core.units import duration, gigabytes
from luthier.reports.compare_report import count, kilobytes, share
from luthier.reports.run_report import figure

STYLES = {"better": "green", "worse": "red"}
COLUMNS: list[tuple[str, int, Callable[[Mapping[str, Any]], str]]] = [
    ("trained", 76, lambda row: count(row["trainable"])),
    ("share", 112, lambda row: share(row["share"])),
    ("file", 88, lambda row: kilobytes(row["adapter_bytes"])),
    ("memory", 100, lambda row: gigabytes(row["memory"])),
    ("tokens/s", 124, lambda row: f"{row['tokens_per_second']:,.0f}"),
    ("training", 66, lambda row: duration(row["seconds"])),
]
"""Name, the width from which on there is room for it, and the cell."""


def show(body: Mapping[str, Any]) -> None:
    """Score, interval, what is real, and costs; what did not run; where the page is."""
    done = [row for row in body["rows"] if row["status"] == "done"]
    if done:
        title = (
            f"{body['examples']} {body['measured_on']} examples; {body['steps']} steps and {body['tokens']:,} tokens "
            f"each, {len(body['seeds'])} seed{'s' * (len(body['seeds']) > 1)}"
        )
        told = [(name, cell) for name, least, cell in COLUMNS if console.width >= least]
        console.print(title)
        table = Table(box=SIMPLE, pad_edge=False)
        table.add_column("method", no_wrap=True)
        for name in (body["metric"].replace("_", " "), "95 %"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("against the best", no_wrap=True)
        for name, _ in told:
            table.add_column(name, justify="right", no_wrap=True)
        if body["base"]:
            table.add_row("untouched base", *_score(body["metric"], body["base"]), "", *[""] * len(told))
        for row in done:
            verdict = row["against"].get("best", {}).get("verdict", "the best" if row["arm"] == body["best"] else "")
            table.add_row(
                row["arm"],
                *_score(body["metric"], row["score"]),
                f"[{STYLES.get(verdict, 'dim')}]{verdict}[/]",
                *(cell(row) for _, cell in told),
            )
        console.print(table)
        console.print(f"  a difference is called real where Holm's p, {body['comparisons']} compared, is below 0.05")
        if len(body["seeds"]) == 1:
            console.print("  one seed: another one moves the scores as well; --seeds 3 counts that in")
    for row in body["rows"]:
        if row["status"] != "done":
            console.print(f"  [yellow]{row['arm']}: {row['status']}: {escape(row['reason'])}[/]")
    console.print(f"  report: [bold]{escape(body['folder'])}/compare.html[/]")


def _score(metric: str, score: Mapping[str, float]) -> tuple[str, str]:
    low, high = (figure(metric, score[key]).removesuffix(" %") for key in ("low", "high"))
    return figure(metric, score["value"]), f"{low} to {high}"
