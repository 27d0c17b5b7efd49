"""The results of a run on the terminal: scores, examples, forgetting, exports, the harness, and a comparison."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from luthier.cli.terminal.console import COLORS, console, label, safe, table
from luthier.core.language import translated
from luthier.core.shell import shell_line
from luthier.core.units import duration, gigabytes
from luthier.reports.compare_report import count, kilobytes, share
from luthier.reports.run_report import figure, scale_of, shift
from luthier.runs.folder import RunFolder

SHOWN = 2
"""Regressions and gains on the terminal; the report has more."""
DEMO_SCORES = ("accuracy", "exact_match", "loss")
"""What a demo shows of the scores; its report has all."""
ANSWERS = 4
"""Answers that a demo shows."""
DEMO_NEXT = {"builtin": ("luthier demo smollm2",)}
"""Further commands after the demo of a base."""
MOST_CHARACTERS = 160
NARROW = 100
"""Terminal width below which a standard error is printed below its score."""
COLUMNS: list[tuple[str, int, Callable[[Mapping[str, Any]], str]]] = [
    ("trained", 76, lambda row: count(row["trainable"])),
    ("share", 112, lambda row: share(row["share"])),
    ("file", 88, lambda row: kilobytes(row["adapter_bytes"])),
    ("memory", 100, lambda row: gigabytes(row["memory"])),
    ("tokens/s", 124, lambda row: f"{row['tokens_per_second']:,.0f}"),
    ("training", 66, lambda row: duration(row["seconds"])),
]
"""Name, minimum terminal width, and cell."""


def show_result(result: Mapping[str, Any]) -> None:
    """Show the scores before and after, where the files are, and the next commands."""
    if result["tuned"]:
        _show_scores(result)
        for caveat in result.get("caveats", []):
            console.say(f"  [yellow]! {escape(translated(caveat, inside=True))}[/]")
        _show_forgetting(result)
        if result.get("examples"):
            _show_examples(result["examples"])
    training = (
        f"{result['steps']} steps in {result['train_seconds']:.0f} s, {result['tokens_per_second']:,.0f} tokens/s; "
        f"weights of step {result['kept_step']}{' (lowest held-out loss)' if result['kept_best'] else ''}"
    )
    made = result.get("adopted")
    console.print(f"  {escape(f'the adapter {made} was made by others') if made else training}")
    if (memory := result.get("memory", {})).get("planned"):
        took = result["time"]
        console.print(
            f"  memory: {gigabytes(memory['measured'])} at most, {gigabytes(memory['planned'])} planned; time: "
            f"{duration(took['measured'])}, {duration(took['planned'])} planned"
        )
    if result.get("skipped_steps") or result.get("loss_spikes"):
        console.print(f"  {result['skipped_steps']} skipped steps, {result['loss_spikes']} loss spikes")
    run = escape(result["run"])
    console.print(f"  report: [bold]{run}/report.html[/]   loss curve: {run}/loss.png")
    console.print(translated("next:"))
    for command in result["next"]:
        console.print(f"  [bold]{escape(command)}[/]", soft_wrap=True)


def show_demo(result: Mapping[str, Any]) -> None:
    """Show the result of a demo: scores before and after, answers as text, what was forgotten, and what comes next."""
    _show_scores(result, DEMO_SCORES)
    _show_answers(RunFolder(Path(result["run"])))
    if (base := result["base"].get("accuracy")) and (tuned := result["tuned"].get("accuracy")):
        before, after = figure("accuracy", base["value"]), figure("accuracy", tuned["value"])
        console.print(
            f"[bold]accuracy {before} → {after}[/] on {result['validation_examples']} messages that were not trained on"
        )
    if found := result.get("forgetting"):
        values = found["all"]
        before, after = (figure("bits_per_byte", values[side]) for side in ("base", "tuned"))
        verdict = values["difference"]["verdict"]
        what = {"worse": "the model forgot", "better": "the model improved"}.get(verdict, "within noise")
        console.print(
            f"  general texts: {before} → {after} bits per byte ({values['tuned'] / values['base'] - 1:+.0%}, {what})"
        )
    parameters, trained = result["parameters"] - result["trainable"], result["trainable"] / 1e6
    console.print(
        f"  base: {parameters / 1e6:,.1f} million parameters; {result['method']}: {trained:,.1f} million; "
        f"{result['steps']} steps in {duration(result['train_seconds'])}"
    )
    page = Path(result["run"], "report.html").resolve().as_uri()
    console.print(f"  {translated('open in a browser:')} [bold]{escape(page)}[/]", soft_wrap=True)
    console.print(translated("next:"))
    run = Path(result["run"])
    more = [shell_line("luthier", "export", run, "--to", "merged"), shell_line("luthier", "serve", run)]
    for command in [result["next"][0], *more, result["next"][-1], *DEMO_NEXT.get(result["model"], ())]:
        console.print(f"  [bold]{escape(command)}[/]", soft_wrap=True)


def _show_answers(folder: RunFolder) -> None:
    """Show what base and tuned model answered: for each of the first references, the first held-out row that has it."""
    rows: dict[str, Any] = {}
    for line in folder.predictions.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.setdefault(row["answer"], row)
    shown = table("message", "before", "after")
    for row in [*rows.values()][:ANSWERS]:
        before, after = (_said(row[side]) for side in ("base", "tuned"))
        right = row["tuned"].get("exact") == 1
        words = f"[green]{after}[/]" if right else f"{after} [dim]({label('reference:')}{_short(row['answer'])})[/]"
        shown.add_row(_short(row["text"]), f"[dim]{before}[/]", words)
    console.print(shown)


def _said(record: Mapping[str, Any]) -> str:
    """The generated answer of a prediction, with dots where it was cut; a dash where none was generated."""
    return _short(record["said"]) + (" ..." if record.get("cut") else "") if "said" in record else "-"


def _show_scores(result: Mapping[str, Any], only: Sequence[str] = ()) -> None:
    """Show base, tuned and difference of each score, or of `only` these; the primary metric is bold."""
    console.print(f"{result['validation_examples']} held-out examples; 95 % CI below each value")
    sides = [name for name in ("base", "tuned", "difference") if result[name]]
    primary = result.get("primary_metric", result.get("headline"))
    shown = table("metric", *(f">{name}" for name in sides))
    for metric in [each for each in result["tuned"] if not only or each in only]:
        words = translated(metric.replace("_", " "))
        span = f"\n[dim]{scale}[/]" if (scale := scale_of(metric)) else ""
        cells = [(f"[bold]{words}[/]" if metric == primary else words) + span]
        shown.add_row(*cells, *(_cell(metric, result[name][metric], sign=name == "difference") for name in sides))
    console.print(shown)


def _cell(metric: str, score: Mapping[str, Any], *, sign: bool) -> str:
    """Format value, interval, and the significance of a difference, one per line."""
    value, low, high = (figure(metric, score[key], sign=sign) for key in ("value", "low", "high"))
    lines = [value, f"[dim]{low.removesuffix(' %').removesuffix(' points')} to {high.removesuffix(' points')}[/]"]
    return "\n".join([*lines, *([_colored(score["verdict"])] if score.get("verdict") else [])])


def _colored(verdict: str) -> str:
    return f"[{COLORS.get(verdict, 'dim')}]{translated(verdict)}[/]"


def _show_forgetting(result: Mapping[str, Any]) -> None:
    if found := result.get("forgetting"):
        change = found["all"]["difference"]
        verdict = change["verdict"]
        what = {"worse": "the model forgot", "better": "the model improved"}.get(verdict, "within noise")
        before, after = (figure("bits_per_byte", found["all"][side]) for side in ("base", "tuned"))
        console.print(
            f"  general texts: {before} bits per byte before, {after} after "
            f"({figure('bits_per_byte', change['value'], sign=True)}): [{COLORS[verdict]}]{what}[/]"
        )
        worse = [name for name, each in found.items() if name != "all" and each["difference"]["verdict"] == "worse"]
        if worse:
            console.print(f"  worse on: {', '.join(worse)}")
    elif why := result.get("no_forgetting"):
        console.print(f"  [dim]forgetting was not measured: {escape(translated(why, inside=True))}[/]")


def _show_examples(found: Mapping[str, Any]) -> None:
    by = found["by"]
    counts = f"{found['better']} better, {found['worse']} worse, {found['same']} the same"
    console.print(f"  examples by {translated(by.replace('_', ' '))}: {counts}")
    titles = translated("worst regressions"), translated("best gains")
    for title, rows in zip(titles, (found["regressions"], found["gains"]), strict=True):
        if rows:
            console.print(f"  [bold]{title}[/]")
        for row in rows[:SHOWN]:
            console.print(f"    {_short(row['text'])}  [dim]{_shift(by, row)}[/]")
            parts = (
                (translated("reference"), "answer"),
                (translated("base"), "base"),
                (translated("tuned"), "tuned"),
            )
            answers = (f"[dim]{what}[/] {_short(row[key])}" for what, key in parts if row[key])
            console.print("      " + "   ".join(answers))


def _shift(by: str, row: Mapping[str, Any]) -> str:
    """The score of an example before and after."""
    return " → ".join(map(translated, shift(by, row["base_score"], row["tuned_score"]).split(" → ")))


def _short(text: str) -> str:
    """Return one line of a text of the data."""
    line = " ".join(text.split())
    return safe(line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]} ...")


def show_export(report: Mapping[str, Any]) -> None:
    """Show what was written, the parity check, and how to load it."""
    checks = table("compared with", ">prompts", ">max difference", ">allowed", ">same top token", ">same answers")
    for each in report["parity"]:
        allowed = "-" if each["bound"] is None else f"{each['bound'] * each['spread']:.3g}"
        shares = f"{each['same_top']:.2%}", f"{each['same_answers']:.0%}"
        checks.add_row(each["against"], str(each["prompts"]), f"{each['largest']:.3g}", allowed, *shares)
    if report["parity"]:
        console.print(checks)
    for key, text in report["checked"].items():
        warning = f"  [yellow]! not verified: {escape(text)}[/]"
        console.print(warning if key == "not_verified" else f"  {key}: {escape(text)}")
    for name, score in report["scores"].get("export", {}).items():
        if before := report["scores"]["run"].get(name):
            values = ("NaN" if v is None else f"{v:.4g}" for v in (before["value"], score["value"]))
            console.print(f"  {name}: {next(values)} as trained, {next(values)} as exported")
    console.print(f"[bold]> {escape(report['path'])}[/] ({report['bytes'] / 1e6:,.1f} MB)")
    for line in report["use"]:
        console.print(f"    {escape(line)}", soft_wrap=True)
    for line in report["messages"]:
        console.print(escape(line))


def show_served(reports: Sequence[Mapping[str, Any]]) -> None:
    """Show for each model of a live endpoint what it answers, how its log-probabilities compare, and the verdict."""
    for report in reports:
        shown = table("prompt", ">as run", ">as base", "answers as", wrap=False)
        shown.columns[0].overflow = "ellipsis"
        for each in report["prompts"]:
            counts = (f"{each[f'as_{side}']}/{each[f'{side}_tokens']}" for side in ("run", "base"))
            words = {
                "run": "the run",
                "base": "[red]the BASE[/]",
                "neither": "[red]neither[/]",
                "both": "[dim]either[/]",
            }
            shown.add_row(safe(" ".join(each["prompt"].split())[:MOST_CHARACTERS]), *counts, words[each["answers_as"]])
        console.print(shown)
        prompts, tokens = report["prompts"], sum(each["run_tokens"] for each in report["prompts"])
        agreed = sum(each["as_run"] for each in prompts)
        console.print(
            f"  tokens up to the first difference; as the run: {agreed} of {tokens} ({agreed / max(1, tokens):.0%}). "
            f"Run and base differ at {report['telling']} of {len(prompts)} prompts"
        )
        if found := report["logprobs"]:
            from_run, from_base = found["from_run"], found["from_base"]
            console.print(
                f"  log-probabilities of {found['tokens']} tokens of {found['of']}: {from_run:.2g} from the run and "
                f"{from_base:.2g} from the base; rounding makes up to {report['bound']:g}\n"
                f"  {found['scale']:.2f} ± {found['scale_error']:.2f} of the adapter's effect arrives"
            )
        else:
            console.print("  the server gives no log-probabilities: texts alone were compared")
        color = "green" if report["verdict"] == "run" else "bold red"
        console.print(f"[bold]>[/] {escape(report['model'])}: [{color}]{report['says']}[/]")


def show_harness(found: Mapping[str, Any], run: str) -> None:
    """Show base and tuned scores on the tasks of lm-evaluation-harness."""
    console.print(f"lm-evaluation-harness {found['lm_eval']}")
    shown = table("task", "metric", ">base", ">tuned", ">difference", "")
    for task, metrics in found["scores"].items():
        for number, (metric, score) in enumerate(metrics.items()):
            values = [_with_error(score[side], score[f"{side}_error"]) for side in ("base", "tuned")]
            difference = f"{score['difference']:+.4f}" if "difference" in score else ""
            noise = _colored("within noise") if score.get("noise") else ""
            shown.add_row("" if number else task, metric, *values, difference, noise)
    console.print(shown)
    console.print("  [dim]after ±: one standard error, if the harness reports it[/]")
    if found["limit"]:
        console.print(f"  [yellow]! only the first {found['limit']} rows of each task[/]")
    console.print(f"  written: [bold]{escape(run)}/harness.json[/]")


def _with_error(value: Any, error: float | None) -> str:
    if not isinstance(value, int | float):
        return ""
    between = " " if console.width >= NARROW else "\n"
    return f"{value:.4f}" + (f"{between}± {error:.4f}" if error is not None else "")


def show_comparison(body: Mapping[str, Any]) -> None:
    """Show score, interval, significance and costs of each method, failed methods, and where the page is."""
    if done := [row for row in body["rows"] if row["status"] == "done"]:
        seeds = len(body["seeds"])
        console.print(
            f"{body['examples']} {body['measured_on']} examples; {body['steps']} steps and {body['tokens']:,} tokens "
            f"each; seeds: {seeds}"
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
            shown.add_row(row["arm"], *_score(metric, row["score"]), _colored(verdict), *costs)
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
