"""Progress on the terminal: a bar with step, loss, tokens/s and time left; plain lines in a log file."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.prompt import Confirm, IntPrompt
from rich.table import Table
from rich.text import Text

from luthier.core.errors import Stopped
from luthier.core.events import Progress
from luthier.core.shell import redacted, shell_line
from luthier.core.units import duration, gigabytes
from luthier.reports.data_report import piece, shown

WIDE = 140
"""Width of a table in a file."""
LEAD = re.compile(r"\s*(?:[!+>-] )?")
"""The indentation of a wrapped line."""


class Lines(Console):
    """A console that wraps messages between words with a hanging indent; in a file each is one line, for grep."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, **options})
        if not self.is_terminal:
            self.soft_wrap = True
            self.width = int(os.environ.get("COLUMNS") or WIDE)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does. Use soft_wrap=True for text to copy, such as commands: it gets no line breaks."""
        if options or len(objects) != 1 or not isinstance(objects[0], str) or self.soft_wrap:
            super().print(*objects, **options)
            return
        for line in Text.from_markup(objects[0]).split(allow_blank=True):
            lead = LEAD.match(line.plain)
            assert lead is not None
            first, rest = line.divide([lead.end()])
            for part in rest.wrap(self, max(20, self.width - lead.end())):
                super().print(first + part)
                first = Text(" " * lead.end())


console, errors = Lines(), Lines(stderr=True)


def starting(command: str, what: str, into: Path | str = "") -> None:
    """Print the first line of a command, before torch is loaded, which takes seconds."""
    target = f" -> {escape(str(into))}" if into else ""
    console.print(f"[bold]luthier {command}[/]: {escape(redacted(what))}{target}")
    console.file.flush()


LINE_EVERY = 30
"""Seconds between lines about an evaluation in a log file."""
BAR_TEXTS = {
    "steps": ("  step {task.completed}/{task.total}", "loss {task.fields[loss]}", "{task.fields[speed]} tokens/s"),
    "runs": ("  {task.fields[count]} of {task.total:.0f} runs", "{task.fields[text]}"),
}
"""The texts of a bar that show more than a count."""


class Terminal(Progress):
    """Shows a run on the terminal."""

    def __init__(self, log_every: int = 1) -> None:
        self.log_every = log_every
        self.bar: Bar | None = None
        self.what = ""
        self.total = 0
        self.began = self.last_line = 0.0

    def stage(self, text: str) -> None:
        self._close()
        self.began = self.last_line = time.perf_counter()
        console.print(f"[bold]>[/] {escape(redacted(text))}")

    def note(self, text: str) -> None:
        self._close()
        console.print(f"  [dim]{safe(redacted(text))}[/]")

    def warn(self, text: str) -> None:
        console.print(f"  [yellow]! {escape(redacted(text))}[/]")

    def ask(self, question: str, answers: Sequence[str]) -> int | None:
        self._close()
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return None
        console.print(f"[bold]?[/] {safe(question)}")
        for number, answer in enumerate(answers, 1):
            console.print(f"  {number}. {safe(answer)}")
        numbers = [str(number) for number in range(1, len(answers) + 1)]
        return IntPrompt.ask("  which?", console=console, choices=numbers, default=1) - 1

    def rows(self, done: int, total: int | None) -> None:
        if self.bar is not None or (console.is_terminal and time.perf_counter() - self.began >= 1):
            self._count("rows", done, total)  # a short wait needs no bar

    def measured(self, what: str, done: int, total: int) -> None:
        if console.is_terminal:
            self._count(what, done, total)
        elif done < total and time.perf_counter() - self.last_line > LINE_EVERY:
            self.last_line = time.perf_counter()
            console.print(f"  {done:,} of {total:,} {what}")

    def runs(self, done: float, total: int, text: str) -> None:
        if console.is_terminal:
            self._update("runs", total, completed=done, text=escape(text), count=int(done))

    def said(self, text: str) -> None:
        console.print(f"  {escape(text)}")

    def train_begins(self, start: int, steps: int) -> None:
        self.total = steps
        self.stage(f"training, {steps - start} steps")
        if console.is_terminal:
            self._update("steps", steps, completed=start, loss="-", speed="-")

    def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
        step, speed = record["step"], f"{tokens_per_second:,.0f}"
        if self.bar is not None:
            self._update("steps", self.total, completed=step, loss=_number(record["loss"], ".3f"), speed=speed)
        elif step % self.log_every == 0 or step == self.total:
            console.print(
                f"  step {step}/{self.total}  loss {_number(record['loss'], '.4f')}  lr {record['lr']:.2e}  "
                f"grad {_number(record['grad_norm'], '.2f')}  {speed} tokens/s"
            )

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        console.print(f"  step {step}: held-out loss {loss:.4f}{' (best so far)' if best else ''}")

    def train_ends(self) -> None:
        self._close()

    def _count(self, what: str, done: int, total: int | None) -> None:
        self._update(what, total, completed=done)
        if done == total:
            self._close()

    def _update(self, what: str, total: int | None, **values: Any) -> None:
        """Update the bar for `what`, or open it: the first text, the bar, the other texts, the time."""
        if self.bar is None or self.what != what:
            self._close()
            self.what = what
            before, *after = map(TextColumn, BAR_TEXTS.get(what, ("  {task.completed:,} {task.description}",)))
            columns = (before, BarColumn(bar_width=None), *after)
            timing = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self.bar = Bar(*columns, *timing, console=console, transient=what != "steps")
            self.bar.start()
            self.bar.add_task(what, **{"total": total, **values})
        self.bar.update(self.bar.task_ids[0], total=total, **values)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def consent(given: bool = False) -> bool | Callable[[str], bool]:
    """Return what of a run folder's code and judge the user allows: all with the option, else what they confirm."""
    if given or not sys.stdin.isatty():
        return given

    @cache
    def ask(what: str) -> bool:
        console.print(f"[yellow]! {safe(what)}[/]")
        try:
            return Confirm.ask("  Allow it this time?", console=console, default=False)
        except EOFError:
            return False

    return ask


@contextmanager
def resumable(terminal: Terminal) -> Iterator[None]:
    """Close the progress bar on an error; if a signal stopped the run, print the command that resumes it."""
    try:
        yield
    except Stopped as stop:
        terminal.train_ends()
        console.print(f"{stop}. Rerun the same command to resume:")
        console.print(f"  [bold]{shell_line('luthier', *sys.argv[1:])}[/]", soft_wrap=True)
        raise typer.Exit(stop.exit_code) from None
    except BaseException:
        terminal.train_ends()
        raise


def table(*columns: str, wrap: bool = True) -> Table:
    """Return a table without borders; columns whose name begins with > are aligned right."""
    made = Table(box=SIMPLE, pad_edge=False)
    for name in columns:
        made.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", no_wrap=not wrap)
    return made


def _number(value: float | None, form: str) -> str:
    """Format a value of a step; a skipped step has none."""
    return "NaN" if value is None else format(value, form)


def show_plan(found: Mapping[str, Any]) -> None:
    """Show what a run will need, by component, and alternatives."""
    plan = found["plan"]
    if plan is None:
        console.print(f"  memory cannot be estimated for this model: {escape(found['why'])}")
        return
    title = f"{found['method']} on {found['model']}, {found['steps']:,} steps, on the {plan['device']}"
    console.print(escape(title))
    parts = table("memory", ">")
    for part, size in plan["parts"].items():
        parts.add_row(part, gigabytes(size))
    parts.add_section()
    parts.add_row("peak", gigabytes(plan["bytes"]))
    console.print(parts)
    packing = f"packing {'on' if found['pack'] else 'off'}"
    checkpointing = f"{'' if found['train']['gradient_checkpointing'] else 'no '}gradient checkpointing"
    console.print(f"  {packing}, {checkpointing}; about [bold]{duration(plan['seconds'])}[/] of training")
    verdict = "[green]it fits[/]" if found["fits"] else "[bold red]it does not fit[/]"
    room = found["room"]
    console.print(f"  {verdict}: {gigabytes(room['free'])} of {gigabytes(room['total'])} are free")
    if found["alternatives"]:
        others = table("alternative", ">memory", ">training", "")
        for other in found["alternatives"]:
            fits = "fits" if other["fits"] else "does not fit"
            others.add_row(other["change"], gigabytes(other["bytes"]), duration(other["seconds"]), fits)
        console.print(others)


COLORS = {"better": "green", "worse": "red", "within noise": "dim"}
MASK_STYLES = {"learned": "green", "end": "bold reverse green", "special": "magenta", "plain": "", "gap": "dim italic"}
FINDING_STYLES = {"stop": ("bold red", "train would stop: "), "warn": ("yellow", "! "), "note": ("dim", "- ")}
FIRST_REFUSALS, FIRST_PIECES = 10, 160


def show_check(found: Mapping[str, Any]) -> None:
    """Show a summary of a check: counts, lengths, labels, scripts, the loss mask, refusals, findings."""
    account, lengths = found["account"], found["lengths"]
    for note in found["notes"]:
        console.print(f"  [dim]{safe(note)}[/]")
    reader, task = account["format"]["name"], account["task"]["name"]
    console.print(f"  format {reader} ({safe(account['format_why'])}), task {task}, template: {account['template']}")
    for each in account["files"]:
        console.print(f"  {safe(each['file'])}: {each['encoding']}")
    for name in ("train", "validation", "test")[: 3 if account["test"]["source"] else 2]:
        part = account[name]
        console.print(
            f"  {name}: {part['read']:,} rows read, {part['kept']:,} kept, {part['cut']:,} cut, "
            f"{part['refused']:,} refused; {part['tokens']:,} tokens, {part['learned']:,} learned"
        )
    if lengths:
        console.print(
            f"  tokens per row: median {lengths['p50']:,}, p90 {lengths['p90']:,}, p95 {lengths['p95']:,}, "
            f"p99 {lengths['p99']:,}, max {lengths['max']:,}"
        )
        cuts = [f"{c['max_length']:,}: {c['rows']:,} rows ({c['share']:.1%})" for c in found["limits"]]
        console.print("  longer than " + ", ".join(cuts))
    labels = {f"labels, {side}": counts for side, counts in found["labels"].items()}
    for name, counts in {**labels, "scripts": found["scripts"], "languages": found["languages"]}.items():
        if counts:
            shown = ", ".join(f"{safe(str(key)[:40])} {count:,}" for key, count in list(counts.items())[:8])
            more = f", and {len(counts) - 8} more" if len(counts) > 8 else ""
            console.print(f"  {name}: {shown}{more}")
    if not found["languages"]:
        console.print(f"  languages: {safe(found['languages_how'])}")
    _show_masks(found["masks"])
    for refusal in found["refusals"][:FIRST_REFUSALS]:
        console.print(f"  refused: {safe(refusal['where'])}: {safe(refusal['reason'])}")
    if len(found["refusals"]) > FIRST_REFUSALS:
        console.print(f"  and {len(found['refusals']) - FIRST_REFUSALS:,} more in {safe(found['out'])}/refused.jsonl")
    for finding in found["findings"]:
        style, sign = FINDING_STYLES[finding["level"]]
        console.print(f"  [{style}]{sign}{safe(finding['text'])}[/]")
    if not found["stops"]:
        console.print("  [green]no problems found[/]")
    console.print(f"  report: [bold]{safe(found['out'])}/data.html[/]")


def _show_masks(masks: Sequence[Mapping[str, Any]]) -> None:
    """Show the first and the longest row; learned text is green and between marks, so that it shows without color."""
    for row in [*masks[:1], *masks[1:][-1:]]:
        learned = f"{row['learned']:,} learned, between \u00ab and \u00bb"
        what = f"learned is the label {row['label']!r}" if row["label"] else learned
        console.print(f"  [bold]{row['why']}[/], {safe(row['where'])}: {row['tokens']:,} tokens, {safe(what)}")
        text, inside = Text(), False
        for words, kind in row["pieces"][:FIRST_PIECES]:
            if inside != (kind in ("learned", "end")):
                text.append("\u00bb" if inside else "\u00ab", style="dim")
                inside = not inside
            text.append(piece(words), style=MASK_STYLES[kind])
        text.append("\u00bb" if inside else "", style="dim")
        text.append(" ..." if len(row["pieces"]) > FIRST_PIECES else "", style="dim")
        console.print(Padding(text, (0, 0, 0, 4)), soft_wrap=False)


def safe(text: str) -> str:
    """Return text of the data without markup and characters that could move the cursor."""
    return escape(shown(text))


def show_error(text: str) -> None:
    """Print a message to standard error; its fix may be copied, so it gets no line breaks."""
    sys.stdout.flush()
    what, *fixes = re.split(r"\n(?=  fix: )", redacted(text))
    errors.print(f"[bold red]error:[/] {escape(what)}")
    for fix in fixes:
        errors.print(escape(fix), soft_wrap=True)
