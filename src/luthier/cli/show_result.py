"""What came of a run, on the terminal: before and after, examples side by side, forgetting, the harness's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from luthier.cli.progress import console
from luthier.reports.data_report import shown
from luthier.reports.run_report import figure, scale_of, shift

COLOURS = {"better": "green", "worse": "red", "within noise": "dim"}
SHOWN = 2
"""Regressions and gains on the terminal; the report has more."""
MOST_CHARACTERS = 160
NARROW = 100
"""Columns below which a standard error stands under its score."""


def show_result(result: Mapping[str, Any]) -> None:
    """The before/after table, where things lie, and what to type next."""
    if result["tuned"]:
        _show_scores(result)
        for caveat in result.get("caveats", []):
            console.print(f"  [yellow]! {escape(caveat)}[/]")
        _show_forgetting(result)
        _show_examples(result)
    console.print(
        f"  {result['steps']} steps in {result['train_seconds']:.0f} s, {result['tokens_per_second']:,.0f} tokens/s; "
        f"weights of step {result['kept_step']}{' (lowest held-out loss)' if result['kept_best'] else ''}"
    )
    if (memory := result.get("memory", {})).get("planned"):
        from luthier.core.units import duration, gigabytes

        took = result["time"]
        console.print(
            f"  memory: {gigabytes(memory['measured'])} at most, {gigabytes(memory['planned'])} planned; time: "
            f"{duration(took['measured'])}, {duration(took['planned'])} planned"
        )
    if result.get("skipped_steps") or result.get("loss_spikes"):
        skipped, spikes = result["skipped_steps"], result["loss_spikes"]
        console.print(f"  {skipped} steps were left out, {spikes} had a loss far above those before them")
    console.print(
        f"  report: [bold]{escape(result['run'])}/report.html[/]   loss curve: {escape(result['run'])}/loss.png"
    )
    console.print("next:")
    for command in result["next"]:
        console.print(f"  [bold]{escape(command)}[/]", soft_wrap=True)


def _show_scores(result: Mapping[str, Any]) -> None:
    """Base, tuned and difference of each score; the one that ranks is bold."""
    console.print(f"{result['validation_examples']} held-out examples; 95 % CI below each value")
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("metric")
    sides = [name for name in ("base", "tuned", "difference") if result[name]]
    for name in sides:
        table.add_column(name, justify="right")
    primary = result.get("primary_metric", result.get("headline"))
    for metric in result["tuned"]:
        words = metric.replace("_", " ")
        span = f"\n[dim]{scale}[/]" if (scale := scale_of(metric)) else ""
        cells = [(f"[bold]{words}[/]" if metric == primary else words) + span]
        cells += [_cell(metric, result[name][metric], sign=name == "difference") for name in sides]
        table.add_row(*cells)
    console.print(table)


def _coloured(verdict: str) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]" if verdict in COLOURS else verdict


def _show_forgetting(result: Mapping[str, Any]) -> None:
    if found := result.get("forgetting"):
        whole = found["all"]["difference"]
        what = {"worse": "the model forgot", "better": "the model got better at them"}.get(whole["verdict"])
        values = [figure("bits_per_byte", found["all"][side]) for side in ("base", "tuned")]
        change = figure("bits_per_byte", whole["value"], sign=True)
        console.print(
            f"  general texts: {values[0]} bits per byte before, {values[1]} after ({change}): "
            f"[{COLOURS[whole['verdict']]}]{what or 'within noise'}[/]"
        )
        worse = [name for name, each in found.items() if name != "all" and each["difference"]["verdict"] == "worse"]
        if worse:
            console.print(f"  worse at: {', '.join(worse)}")
    elif why := result.get("no_forgetting"):
        console.print(f"  [dim]forgetting was not measured: {escape(why)}[/]")


def _show_examples(result: Mapping[str, Any]) -> None:
    found = result.get("examples")
    if not found:
        return
    by = found["by"]
    counts = f"{found['better']} better, {found['worse']} worse, {found['same']} the same"
    console.print(f"  example by example, {by.replace('_', ' ')}: {counts}")
    for title, rows in (("worst regressions", found["regressions"]), ("best gains", found["gains"])):
        if rows:
            console.print(f"  [bold]{title}[/]")
        for row in rows[:SHOWN]:
            console.print(f"    {_short(row['text'])}  [dim]{shift(by, row['base_score'], row['tuned_score'])}[/]")
            parts = (("reference", "answer"), ("base", "base"), ("tuned", "tuned"))
            console.print(
                "      " + "   ".join(f"[dim]{what}[/] {_short(row[key])}" for what, key in parts if row[key])
            )


def _short(text: str) -> str:
    """One line of a text of the data, without markup or anything that moves the cursor."""
    line = " ".join(text.split())
    return escape(shown(line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]} ..."))


def show_export(report: Mapping[str, Any]) -> None:
    """What was written, the parity check, and how to load it."""
    table = Table(box=SIMPLE)
    for title in ("beside", "prompts", "largest difference", "allowed", "same top token", "same answers"):
        table.add_column(title, justify="left" if title == "beside" else "right")
    for each in report["parity"]:
        allowed = "-" if each["bound"] is None else f"{each['bound'] * each['spread']:.3g}"
        table.add_row(
            each["against"],
            str(each["prompts"]),
            f"{each['largest']:.3g}",
            allowed,
            f"{each['same_top']:.2%}",
            f"{each['same_answers']:.0%}",
        )
    if report["parity"]:
        console.print(table)
    for key, text in report["checked"].items():
        console.print(
            f"  [yellow]! not verified: {escape(text)}[/]" if key == "not_verified" else f"  {key}: {escape(text)}"
        )
    for name, score in report["scores"].get("export", {}).items():
        before = report["scores"]["run"].get(name)
        if before:
            values = ("no number" if v is None else f"{v:.4g}" for v in (before["value"], score["value"]))
            console.print(f"  {name}: {next(values)} as trained, {next(values)} as exported")
    console.print(f"[bold]> {escape(report['path'])}[/] ({report['bytes'] / 1e6:,.1f} MB)")
    for line in report["use"]:
        console.print(f"    {escape(line)}", soft_wrap=True)
    for line in report["messages"]:
        console.print(escape(line))


def show_harness(found: Mapping[str, Any], run: str) -> None:
    """Base against tuned on the tasks of lm-evaluation-harness."""
    console.print(f"lm-evaluation-harness {found['lm_eval']}")
    table = Table(box=SIMPLE, pad_edge=False)
    for name in ("task", "metric", "base", "tuned", "difference", ""):
        table.add_column(name, justify="left" if name in ("task", "metric", "") else "right")
    for task, metrics in found["scores"].items():
        for number, (metric, score) in enumerate(metrics.items()):
            cells = [task if not number else "", metric, _error(score["base"], score["base_error"])]
            cells += [_error(score["tuned"], score["tuned_error"])]
            cells += [f"{score['difference']:+.4f}" if "difference" in score else ""]
            cells += [_coloured("within noise") if score.get("noise") else ""]
            table.add_row(*map(str, cells))
    console.print(table)
    console.print("  [dim]after the sign: one standard error, where the harness gives one[/]")
    if found["limit"]:
        console.print(f"  [yellow]! only the first {found['limit']} rows of each task[/]")
    console.print(f"  written: [bold]{escape(run)}/harness.json[/]")


def _error(value: Any, error: float | None) -> str:
    if not isinstance(value, int | float):
        return ""
    between = " " if console.width >= NARROW else "\n"
    return f"{value:.4f}" + (f"{between}± {error:.4f}" if error is not None else "")


def _cell(metric: str, score: Mapping[str, Any], *, sign: bool) -> str:
    """Value, interval, and for a difference the verdict, a line each."""
    value, low, high = (figure(metric, score[key], sign=sign) for key in ("value", "low", "high"))
    lines = [value, f"[dim]{low.removesuffix(' %').removesuffix(' points')} to {high.removesuffix(' points')}[/]"]
    if verdict := score.get("verdict"):
        lines.append(_coloured(verdict))
    return "\n".join(lines)
