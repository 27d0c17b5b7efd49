"""What a run looks like on a terminal: a bar with step, loss, tokens/s and time left; plain lines in a log file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from luthier.reports.run_report import figure
from luthier.training.progress import Progress

# Piped output has no width of its own: keep a message on one line there, for grep.
console = Console(highlight=False, soft_wrap=True)
errors = Console(highlight=False, stderr=True, soft_wrap=True)


class Terminal(Progress):
    """Shows a run on the terminal."""

    def __init__(self, log_every: int = 1) -> None:
        self.log_every = log_every
        self.bar: Bar | None = None
        self.total = 0

    def stage(self, text: str) -> None:
        console.print(f"[bold]>[/] {escape(text)}")

    def note(self, text: str) -> None:
        console.print(f"  [dim]{escape(text)}[/]")

    def warn(self, text: str) -> None:
        console.print(f"  [yellow]! {escape(text)}[/]")

    def train_begins(self, start: int, steps: int) -> None:
        self.total = steps
        self.stage(f"training, {steps - start} steps")
        if not console.is_terminal:
            return
        self.bar = Bar(
            TextColumn("  step"), MofNCompleteColumn(), BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}"), TextColumn("{task.fields[speed]} tokens/s"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console, transient=False,
        )  # fmt: skip
        self.bar.start()
        self.bar.add_task("train", total=steps, completed=start, loss="-", speed="-")

    def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
        if self.bar is not None:
            task = self.bar.task_ids[0]
            self.bar.update(
                task, completed=record["step"], loss=f"{record['loss']:.3f}", speed=f"{tokens_per_second:,.0f}"
            )
        elif record["step"] % self.log_every == 0 or record["step"] == self.total:
            console.print(
                f"  step {record['step']}/{self.total}  loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
                f"grad {record['grad_norm']:.2f}  {tokens_per_second:,.0f} tokens/s"
            )

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        console.print(f"  step {step}: held-out loss {loss:.4f}{' (best so far)' if best else ''}")

    def train_ends(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def show_result(result: Mapping[str, Any]) -> None:
    """The before/after table, where things lie, and what to type next."""
    if result["tuned"]:
        title = f"{result['validation_examples']} held-out examples; below each value its 95 % interval"
        table = Table(title=title, title_justify="left", title_style="", box=SIMPLE, pad_edge=False)
        table.add_column("metric")
        for name in ("base", "tuned", "difference"):
            if result[name]:
                table.add_column(name, justify="right")
        for metric in result["tuned"]:
            cells = [metric.replace("_", " ")]
            for name in ("base", "tuned", "difference"):
                if result[name]:
                    cells.append(_cell(metric, result[name][metric], sign=name == "difference"))
            table.add_row(*cells)
        console.print(table)
    console.print(
        f"  {result['steps']} steps in {result['train_seconds']:.0f} s, {result['tokens_per_second']:,.0f} tokens/s; "
        f"weights of step {result['kept_step']}{' (lowest held-out loss)' if result['kept_best'] else ''}"
    )
    console.print(
        f"  report: [bold]{escape(result['run'])}/report.html[/]   loss curve: {escape(result['run'])}/loss.png"
    )
    console.print("next:")
    for command in result["next"]:
        console.print(f"  [bold]{escape(command)}[/]")


def _cell(metric: str, score: Mapping[str, float], *, sign: bool) -> str:
    value, low, high = (figure(metric, score[key], sign=sign) for key in ("value", "low", "high"))
    return f"{value}\n[dim]{low.removesuffix(' %').removesuffix(' points')} to {high.removesuffix(' points')}[/]"


def show_error(text: str) -> None:
    """One clear message on standard error."""
    sys.stdout.flush()
    errors.print(f"[bold red]error:[/] {escape(text)}")
