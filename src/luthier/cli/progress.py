"""What a run looks like on a terminal: a bar with step, loss, tokens/s and time left; plain lines in a log file."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text

from luthier.core.events import Progress
from luthier.core.redaction import redacted
from luthier.reports.data_report import piece, shown

WIDE = 140
"""Columns of a table where no terminal says how many it has."""
LEAD = re.compile(r"\s*(?:[!+>-] )?")
"""What a line that is continued below is indented by."""


class Lines(Console):
    """A console whose messages wrap between words, below their beginning; a file gets each on one line, for grep."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich prints. What is to be pasted, such as a command, takes soft_wrap=True: nothing is put into it."""
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


def _lines(*, stderr: bool = False) -> Lines:
    made = Lines(highlight=False, stderr=stderr)
    if not made.is_terminal:
        made.soft_wrap = True
        made.width = int(os.environ.get("COLUMNS") or WIDE)
    return made


console, errors = _lines(), _lines(stderr=True)


def starting(command: str, what: str, into: Path | str = "") -> None:
    """The first line of a command, printed before torch is loaded: that takes seconds."""
    console.print(
        f"[bold]luthier {command}[/]: {escape(redacted(what))}" + (f" -> {escape(str(into))}" if into else "")
    )
    console.file.flush()


LINE_EVERY = 30
"""Seconds between lines about an evaluation in a log file."""


class Terminal(Progress):
    """Shows a run on the terminal."""

    def __init__(self, log_every: int = 1) -> None:
        self.log_every = log_every
        self.bar: Bar | None = None
        self.total = 0
        self.began = 0.0
        self.told = 0.0
        self.what = ""

    def stage(self, text: str) -> None:
        self._close()
        self.began = self.told = time.perf_counter()
        console.print(f"[bold]>[/] {escape(redacted(text))}")

    def note(self, text: str) -> None:
        self._close()
        console.print(f"  [dim]{_safe(redacted(text))}[/]")

    def warn(self, text: str) -> None:
        console.print(f"  [yellow]! {escape(redacted(text))}[/]")

    def ask(self, question: str, answers: Sequence[str]) -> int | None:
        self._close()
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return None
        console.print(f"[bold]?[/] {_safe(question)}")
        for number, answer in enumerate(answers, 1):
            console.print(f"  {number}. {_safe(answer)}")
        while True:
            given = console.input(f"  which? (1 to {len(answers)}) \\[1] ").strip() or "1"
            if given.isdecimal() and 1 <= int(given) <= len(answers):
                return int(given) - 1

    def rows(self, done: int, total: int | None) -> None:
        if self.bar is None:
            if not console.is_terminal or time.perf_counter() - self.began < 1:  # a short wait needs no bar
                return
            self.bar = Bar(
                TextColumn("  {task.completed:,} rows"),
                BarColumn(bar_width=None),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self.bar.start()
            self.bar.add_task("rows", total=total)
        self.bar.update(self.bar.task_ids[0], completed=done, total=total)
        if done == total:
            self._close()

    def runs(self, done: float, total: int, text: str) -> None:
        if not console.is_terminal:
            return
        if self.bar is None:
            self.bar = Bar(
                TextColumn("  {task.fields[count]} of {task.total:.0f} runs"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self.bar.start()
            self.bar.add_task("runs", total=total, text="", count=0)
        self.bar.update(self.bar.task_ids[0], completed=done, text=escape(text), count=int(done))

    def said(self, text: str) -> None:
        """A line above the bar, which stays."""
        console.print(f"  {escape(text)}")

    def measured(self, what: str, done: int, total: int) -> None:
        if not console.is_terminal:
            if done < total and time.perf_counter() - self.told > LINE_EVERY:
                self.told = time.perf_counter()
                console.print(f"  {done:,} of {total:,} {what}")
            return
        if self.bar is None or self.what != what:
            self._close()
            self.what = what
            self.bar = Bar(
                TextColumn("  {task.completed:,} {task.description}"),
                BarColumn(bar_width=None),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self.bar.start()
            self.bar.add_task(what, total=total)
        self.bar.update(self.bar.task_ids[0], completed=done, total=total)
        if done == total:
            self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def train_begins(self, start: int, steps: int) -> None:
        self.total = steps
        self.stage(f"training, {steps - start} steps")
        if not console.is_terminal:
            return
        self.bar = Bar(
            TextColumn("  step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=False,
        )
        self.bar.start()
        self.bar.add_task("train", total=steps, completed=start, loss="-", speed="-")

    def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
        if self.bar is not None:
            task = self.bar.task_ids[0]
            self.bar.update(
                task, completed=record["step"], loss=_number(record["loss"], ".3f"), speed=f"{tokens_per_second:,.0f}"
            )
        elif record["step"] % self.log_every == 0 or record["step"] == self.total:
            console.print(
                f"  step {record['step']}/{self.total}  loss {_number(record['loss'], '.4f')}  lr {record['lr']:.2e}  "
                f"grad {_number(record['grad_norm'], '.2f')}  {tokens_per_second:,.0f} tokens/s"
            )

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        console.print(f"  step {step}: held-out loss {loss:.4f}{' (best so far)' if best else ''}")

    def train_ends(self) -> None:
        self._close()


def consent(given: bool = False) -> bool | Callable[[str], bool]:
    """What the user allows of what a run folder names: all of it by an option, else each that a person says yes to."""
    if given or not sys.stdin.isatty():
        return given
    answers: dict[str, bool] = {}

    def ask(what: str) -> bool:
        if what not in answers:
            console.print(f"[yellow]! {_safe(what)}[/]")
            try:
                answers[what] = Confirm.ask("  Allow it this time?", console=console, default=False)
            except EOFError:
                return False
        return answers[what]

    return ask


def _number(value: float | None, form: str) -> str:
    """A figure of a step; a step that was left out has none."""
    return "no number" if value is None else format(value, form)


def show_cache(folder: str, entries: Sequence[tuple[Path, int, float]], freed: int | None) -> None:
    """The entries of the cache, or how much was freed."""
    if freed is not None:
        console.print(f"{_safe(folder)}: {freed / 2**20:,.0f} MiB freed")
        return
    total = sum(size for _, size, _ in entries)
    console.print(f"{_safe(folder)}: {len(entries)} entries, {total / 2**20:,.0f} MiB")
    for entry, size, used in entries:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
        console.print(f"  {entry.name}  {size / 2**20:,.1f} MiB, last used {day}")


def show_plan(found: Mapping[str, Any]) -> None:
    """What a run will need, by component, and what else would do."""
    from luthier.core.units import duration, gigabytes

    plan = found["plan"]
    if plan is None:
        console.print(f"  memory cannot be estimated for this model: {escape(found['why'])}")
        return
    title = f"{found['method']} on {found['model']}, {found['steps']:,} steps, on the {plan['device']}"
    console.print(escape(title))
    table = Table(box=SIMPLE, pad_edge=False, show_footer=True)
    table.add_column("memory", footer="at most")
    table.add_column("", justify="right", footer=gigabytes(plan["bytes"]))
    for part, size in plan["parts"].items():
        table.add_row(part, gigabytes(size))
    console.print(table)
    room = found["room"]
    kept = "made twice (gradient checkpointing)" if found["train"]["gradient_checkpointing"] else "kept"
    console.print(
        f"  {'packed' if found['pack'] else 'padded'} rows, activations {kept}; "
        f"about [bold]{duration(plan['seconds'])}[/] of training"
    )
    verdict = "[green]it fits[/]" if found["fits"] else "[bold red]it does not fit[/]"
    console.print(f"  {verdict}: {gigabytes(room['free'])} of {gigabytes(room['total'])} are free")
    if found["alternatives"]:
        table = Table(box=SIMPLE, pad_edge=False)
        for name in ("instead", "memory", "training", ""):
            table.add_column(name, justify="right" if name in ("memory", "training") else "left")
        for other in found["alternatives"]:
            fits = "fits" if other["fits"] else "does not fit"
            table.add_row(other["change"], gigabytes(other["bytes"]), duration(other["seconds"]), fits)
        console.print(table)


MASK_STYLES = {"learned": "green", "end": "bold reverse green", "special": "magenta", "plain": "", "gap": "dim italic"}
FIRST_REFUSALS, FIRST_PIECES = 10, 160


def show_check(found: Mapping[str, Any]) -> None:
    """What a check found, shortly: counts, lengths, labels, scripts, the loss mask, refusals, findings."""
    account, lengths = found["account"], found["lengths"]
    for note in found["notes"]:
        console.print(f"  [dim]{_safe(note)}[/]")
    reader, task = account["format"]["name"], account["task"]["name"]
    console.print(f"  format {reader} ({_safe(account['format_why'])}), task {task}, template: {account['template']}")
    for each in account["files"]:
        console.print(f"  {_safe(each['file'])}: {each['encoding']}")
    for name in ("train", "validation", "test")[: 3 if account["test"]["source"] else 2]:
        part = account[name]
        console.print(
            f"  {name}: {part['read']:,} rows read, {part['kept']:,} kept, {part['cut']:,} cut, "
            f"{part['refused']:,} refused; {part['tokens']:,} tokens, {part['learned']:,} learned"
        )
    if lengths:
        console.print(
            f"  tokens of a row: half have at most {lengths['p50']:,}, 90 % {lengths['p90']:,}, "
            f"95 % {lengths['p95']:,}, 99 % {lengths['p99']:,}; the longest has {lengths['max']:,}"
        )
        cuts = [f"{c['max_length']:,}: {c['rows']:,} rows ({c['share']:.1%})" for c in found["limits"]]
        console.print("  longer than " + ", ".join(cuts))
    labels = {f"labels, {side}": counts for side, counts in found["labels"].items()}
    for name, counts in {**labels, "scripts": found["scripts"], "languages": found["languages"]}.items():
        if counts:
            shown = ", ".join(f"{_safe(str(key)[:40])} {count:,}" for key, count in list(counts.items())[:8])
            more = f", and {len(counts) - 8} more" if len(counts) > 8 else ""
            console.print(f"  {name}: {shown}{more}")
    if not found["languages"]:
        console.print(f"  languages: {_safe(found['languages_how'])}")
    _show_masks(found["masks"])
    for refusal in found["refusals"][:FIRST_REFUSALS]:
        console.print(f"  refused: {_safe(refusal['where'])}: {_safe(refusal['reason'])}")
    if len(found["refusals"]) > FIRST_REFUSALS:
        console.print(f"  and {len(found['refusals']) - FIRST_REFUSALS:,} more in {_safe(found['out'])}/refused.jsonl")
    for finding in found["findings"]:
        style, sign = {"stop": ("bold red", "train would stop: "), "warn": ("yellow", "! "), "note": ("dim", "- ")}[
            finding["level"]
        ]
        console.print(f"  [{style}]{sign}{_safe(finding['text'])}[/]")
    if not found["stops"]:
        console.print("  [green]nothing here would stop train[/]")
    console.print(f"  report: [bold]{_safe(found['out'])}/data.html[/]")


def _show_masks(masks: Sequence[Mapping[str, Any]]) -> None:
    """The first and the longest row; what is learned stands in green between marks, so that it shows without colour."""
    if not masks:
        return
    for mask in dict.fromkeys((0, len(masks) - 1)):
        row = masks[mask]
        learned = f"{row['learned']:,} learned, between \u00ab and \u00bb"
        what = f"learned is the label {row['label']!r}" if row["label"] else learned
        console.print(f"  [bold]{row['why']}[/], {_safe(row['where'])}: {row['tokens']:,} tokens, {_safe(what)}")
        text, inside = Text(), False
        for words, kind in row["pieces"][:FIRST_PIECES]:
            if inside != (kind in ("learned", "end")):
                text.append("\u00bb" if inside else "\u00ab", style="dim")
                inside = not inside
            text.append(piece(words), style=MASK_STYLES[kind])
        text.append("\u00bb" if inside else "", style="dim")
        text.append(" ..." if len(row["pieces"]) > FIRST_PIECES else "", style="dim")
        console.print(Padding(text, (0, 0, 0, 4)), soft_wrap=False)


def _safe(text: str) -> str:
    """Text of the data: no markup, and nothing that could move the cursor."""
    return escape(shown(text))


def show_error(text: str) -> None:
    """One clear message on standard error; what fixes it may be pasted, so it gets no line ends."""
    sys.stdout.flush()
    what, *fixes = re.split(r"\n(?=  fix: )", redacted(text))
    errors.print(f"[bold red]error:[/] {escape(what)}")
    for fix in fixes:
        errors.print(escape(fix), soft_wrap=True)
