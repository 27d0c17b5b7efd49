"""What `luthier check` and `luthier plan` found, on the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from luthier.cli.terminal.console import console, safe, table
from luthier.core.language import filled, translated
from luthier.core.units import duration, gigabytes
from luthier.reports.data_report import piece

MASK_STYLES = {"learned": "green", "end": "bold reverse green", "special": "magenta", "plain": "", "gap": "dim italic"}
FINDING_STYLES = {"stop": ("bold red", "train would stop: "), "warn": ("yellow", "! "), "note": ("dim", "- ")}
FIRST_REFUSALS, FIRST_PIECES = 10, 160


def show_check(found: Mapping[str, Any]) -> None:
    """Show a summary of a check: counts, lengths, labels, scripts, the loss mask, refusals, findings."""
    account, lengths = found["account"], found["lengths"]
    for note in found["notes"]:
        console.say(f"  [dim]{safe(translated(note, inside=True))}[/]")
    reader, task = account["format"]["name"], account["task"]["name"]
    console.print(f"  format {reader}, task {task}, template: {account['template']}")
    console.print(f"  {safe(translated(account['format_why']))}")
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
        cuts = (f"{c['max_length']:,}: {filled('{0} rows', c['rows'])} ({c['share']:.1%})" for c in found["limits"])
        console.print(f"  {translated('longer than')} {', '.join(cuts)}")
    labels = {f"{translated('labels')} ({side})": counts for side, counts in found["labels"].items()}
    others = {translated("scripts"): found["scripts"], translated("languages"): found["languages"]}
    for name, counts in {**labels, **others}.items():
        if counts:
            shown = ", ".join(f"{safe(str(key)[:40])} {count:,}" for key, count in list(counts.items())[:8])
            more = filled(", and {0} more", len(counts) - 8) if len(counts) > 8 else ""
            console.print(f"  {name}: {shown}{more}")
    if not found["languages"]:
        console.print(f"  {translated('languages')}: {safe(translated(found['languages_how']))}")
    _show_masks(found["masks"])
    for refusal in found["refusals"][:FIRST_REFUSALS]:
        reason = translated(refusal["reason"], inside=True)
        console.print(f"  {translated('refused')}: {safe(refusal['where'])}: {safe(reason)}")
    if len(found["refusals"]) > FIRST_REFUSALS:
        console.print(f"  and {len(found['refusals']) - FIRST_REFUSALS:,} more in {safe(found['out'])}/refused.jsonl")
    for finding in found["findings"]:
        style, sign = FINDING_STYLES[finding["level"]]
        console.say(f"  [{style}]{translated(sign)}{safe(translated(finding['text'], inside=True))}[/]")
    if not found["stops"]:
        console.print("  [green]no problems found[/]")
    console.print(f"  report: [bold]{safe(found['out'])}/data.html[/]")


def _show_masks(masks: Sequence[Mapping[str, Any]]) -> None:
    """Show the first and the longest row; learned text is green and between marks, so that it shows without color."""
    for row in [*masks[:1], *masks[1:][-1:]]:
        learned = f"{row['learned']:,} learned, between \u00ab and \u00bb"
        what = translated(f"learned is the label {row['label']!r}" if row["label"] else learned)
        tokens = filled("{0} tokens", f"{row['tokens']:,}")
        console.print(f"  [bold]{translated(row['why'])}[/], {safe(row['where'])}: {tokens}, {safe(what)}")
        text, inside = Text(), False
        for words, kind in row["pieces"][:FIRST_PIECES]:
            if inside != (kind in ("learned", "end")):
                text.append("\u00bb" if inside else "\u00ab", style="dim")
                inside = not inside
            text.append(piece(words), style=MASK_STYLES[kind])
        text.append("\u00bb" if inside else "", style="dim")
        text.append(" ..." if len(row["pieces"]) > FIRST_PIECES else "", style="dim")
        console.print(Padding(text, (0, 0, 0, 4)), soft_wrap=False)


def show_plan(found: Mapping[str, Any]) -> None:
    """Show what a run will need, by component, and alternatives."""
    plan = found["plan"]
    if plan is None:
        console.print(f"  memory cannot be estimated for this model: {escape(translated(found['why']))}")
        return
    if "cluster" in found:
        _show_cluster(found)
        return
    title = f"{found['method']} on {found['model']}, {found['steps']:,} steps, on the {plan['device']}"
    console.print(escape(title))
    parts = table("memory", ">")
    for part, size in plan["parts"].items():
        parts.add_row(translated(part), gigabytes(size))
    parts.add_section()
    parts.add_row(translated("peak"), gigabytes(plan["bytes"]))
    console.print(parts)
    packing = f"packing {'on' if found['pack'] else 'off'}"
    checkpointing = f"{'' if found['train']['gradient_checkpointing'] else 'no '}gradient checkpointing"
    console.print(f"  {packing}, {checkpointing}; about [bold]{duration(plan['seconds'])}[/] of training")
    verdict = "[green]it fits[/]" if found["fits"] else "[bold red]it does not fit[/]"
    room = found["room"]
    console.print(f"  {verdict}: {gigabytes(room['free'])} of {gigabytes(room['total'])} of memory are free")
    if found["alternatives"]:
        others = table("alternative", ">memory", ">training", "")
        for other in found["alternatives"]:
            fits = translated("fits" if other["fits"] else "does not fit")
            others.add_row(other["change"], gigabytes(other["bytes"]), duration(other["seconds"]), fits)
        console.print(others)


def _show_cluster(found: Mapping[str, Any]) -> None:
    """Show one device of a cluster in each layout, and which of them train takes."""
    cluster, layouts = found["cluster"], found["cluster"]["layouts"]
    where = f"{cluster['nodes']:,} x {cluster['devices']} ({cluster['link']}; {cluster['network']})"
    console.print(escape(f"{found['method']} on {found['model']}, {found['steps']:,} steps, on {where}"))
    rows = table("each device", *(f">{layout['parallel']}" for layout in layouts))

    def add(name: str, values: Iterable[str]) -> None:
        rows.add_row(translated(name), *values)

    for block in ("parts", "traffic"):
        for name in dict.fromkeys(name for layout in layouts for name in layout[block]):
            sizes = (layout[block].get(name) for layout in layouts)
            add(name if block == "parts" else f"{name} per step", ("" if s is None else gigabytes(s) for s in sizes))
        if block == "parts":
            rows.add_section()
            add("peak", (gigabytes(layout["bytes"]) for layout in layouts))
            add("", (translated("fits" if layout["fits"] else "does not fit") for layout in layouts))
            add("devices that share the weights", (f"{layout['shards']:,}" for layout in layouts))
        rows.add_section()
    for name, key in (("step", "step_seconds"), ("of it only communicating", "waiting_seconds")):
        add(
            name, (f"{1000 * layout[key]:,.3g} ms" if layout[key] < 1 else f"{layout[key]:.2f} s" for layout in layouts)
        )
    add("tokens per second", (f"{layout['tokens_per_second_per_device']:,.0f}" for layout in layouts))
    add("TFLOP/s", (f"{layout['tflops_per_device']:,.0f} ({layout['utilization']:.0%})" for layout in layouts))
    add("tokens per second, all devices", (f"{layout['tokens_per_second']:,.0f}" for layout in layouts))
    console.print(rows)
    console.print(f"  train takes [bold]{cluster['parallel']}[/]: {translated(cluster['why'])}")
    packing = f"packing {'on' if found['pack'] else 'off'}"
    checkpointing = f"{'' if found['train']['gradient_checkpointing'] else 'no '}gradient checkpointing"
    console.print(f"  {packing}, {checkpointing}; about [bold]{duration(found['plan']['seconds'])}[/] of training")
    room = found["room"]
    verdict = "[green]it fits[/]" if found["fits"] else "[bold red]it does not fit[/]"
    console.print(f"  {verdict}: {gigabytes(room['free'])} of {gigabytes(room['total'])} of memory are free")
    if cluster["idle"]:
        enough = f"train.batch_size={cluster['ranks']}"
        console.print(f"  [yellow]! {cluster['idle']:,} devices have no row in a step; {enough} gives each one[/]")
