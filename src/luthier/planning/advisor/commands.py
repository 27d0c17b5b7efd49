"""A choice as people read it: the table, reasons with their sources, what was ruled out, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.shell import command
from luthier.core.units import duration, gigabytes
from luthier.planning.advisor.reasons import size, work

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.planning.advisor.rank import Choice

FIRST = 3
"""Methods whose reasons are shown."""
SPARED = ("merges", "file", "fits", "setting", "training")
"""Columns of the table that are left out where the terminal is too narrow, the first of them first."""
COMPARED = 4
"""Methods that a comparison is suggested for, at most."""


def next_commands(choice: Choice, given: Sequence[str], *, packed: str) -> list[str]:
    """The line that trains with the first method, and where evidence does not tell the first apart, one that would.

    `given` is what the user typed of the recipe; `packed` is the recipe's own model.quantize.
    """
    if not choice.ranked:
        return []
    kept = [word for word in given if not word.startswith(("method", "model.quantize="))]
    first = choice.ranked[0]
    settings = [word for word in first.settings if word.startswith("model.quantize=")]
    if first.quantize == "none" and packed != "none":
        settings = ["model.quantize=none"]
    commands = [["luthier", "train", *kept, "--method", first.arm, *settings]]
    close = choice.ties()
    form = next((one.quantize for one in close if one.name != one.arm), None)
    if form is not None:  # those that need a quantized base can only be compared on one
        close = [one for one in close if one.quantize == form]
        kept = [*kept, f"model.quantize={form}"]
    if len(close) > 1:
        names = ",".join(one.arm for one in close[:COMPARED])
        commands.append(["luthier", "compare", *kept, "--methods", names])
    return [command(*words) for words in commands]


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print it: the question, the ranking, reasons, limits, what was ruled out, and the next commands."""
    from rich.markup import escape

    asked = found["question"]
    console.print(
        f"  {escape(asked['model'])}: {asked['parameters']:,} parameters, {asked['family']}; {escape(asked['said'])}"
    )
    console.print(f"  {machine(asked)}")
    if found["ranked"]:
        tables = (table(found, SPARED[:number]) for number in range(len(SPARED)))
        whole = console.options.update(max_width=10 * console.width)
        fits = (made for made in tables if console.measure(made, options=whole).maximum <= console.width)
        console.print(next(fits, table(found, SPARED)))
        for board in boards(found):
            console.print(f"  measured: {escape(board)}")
    else:
        console.print("  [bold red]nothing fits[/]" + (f": {escape(least(found))}" if least(found) else ""))
    for row in found["ranked"][:FIRST]:
        console.print(f"[bold]{row['place']}. {row['method']}[/]{'' if row['place'] == 1 else _why_behind(found, row)}")
        for reason in row["reasons"]:
            sign = "-" if reason["weight"] < 0 else "+" if reason["weight"] > 0 else " "
            console.print(f"  {sign} {escape(reason['text'])} [dim]{escape(reason['cited'])}[/]")
    for title, rows in (("what this does not know", found["limits"]), ("ruled out", ruled_out(found))):
        if rows:
            console.print(f"[bold]{title}[/]")
        for row in rows:
            console.print(f"  {escape(row['text'])} [dim]{escape(row['cited'])}[/]")
    if found["behind"]:
        names = ", ".join(row["method"] for row in found["behind"])
        console.print(f"measured behind these, and not planned: {escape(names)}")
    if found["next"]:
        console.print("next:")
    for line in found["next"]:
        console.print(f"  [bold]{escape(line)}[/]", soft_wrap=True)


def boards(found: Mapping[str, Any]) -> list[str]:
    """Each board of the table's last column, with its source."""
    scores = [row["score"] for row in found["ranked"] if row["score"]]
    return list(dict.fromkeys(f"{score['board']}, {score['metric']} {score['cited']}" for score in scores))


def machine(asked: Mapping[str, Any]) -> str:
    """The device and its memory, and what else was asked for."""
    kind = "GPU" if asked["device"] == "cuda" else "CPU" if asked["device"] == "cpu" else asked["device"]
    there = (
        f"{gigabytes(asked['free'])} of {gigabytes(asked['memory'])} free"
        if asked["this_machine"]
        else gigabytes(asked["memory"])
    )
    said = [f"{'this machine, ' if asked['this_machine'] else 'another machine, '}{kind}: {there}"]
    if asked["devices"] > 1:
        said.append(f"{asked['devices']} devices")
    if asked["variants"] > 1:
        said.append(f"{asked['variants']} variants")
    if asked["latency"] is not None:
        said.append("merged" if asked["latency"] == "merged" else f"{asked['latency']:g} ms a token")
    if asked["time"]:
        said.append(f"at most {duration(asked['time'])}")
    return ", ".join(said)


def _why_behind(found: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    if row["ties_with_first"]:
        return f"  (counts as equal to {found['ranked'][0]['method']} by what was measured)"
    return ""


def table(found: Mapping[str, Any], without: Sequence[str] = ()) -> Any:
    """The ranking, `without` some of its columns."""
    from rich.box import SIMPLE
    from rich.table import Table

    made = Table(box=SIMPLE, pad_edge=False)
    many = found["question"]["variants"]
    heads = [
        "",
        "method",
        "setting",
        "fits",
        "memory",
        "training",
        "file",
        *([f"all {many}"] if many > 1 else []),
        "merges",
        "measured",
    ]
    for head in heads:
        figures = ("", "memory", "training", "file", f"all {many}")
        if head not in without:
            made.add_column(head, justify="right" if head in figures else "left", no_wrap=True)
    for row in found["ranked"]:
        made.add_row(*(cell for head, cell in zip(heads, _cells(row, many), strict=True) if head not in without))
    return made


def _cells(row: Mapping[str, Any], many: int) -> list[str]:
    fits = {True: "yes", False: "no", None: "?"}[row["fits"]]
    if row["seconds"] is not None:
        training = duration(row["seconds"])
    else:
        training = "?" if row["flops"] is None else work(row["flops"])
    setting = [row["quantize"]] if row["quantize"] != "none" else []
    setting += ["checkpointing"] if row["gradient_checkpointing"] else []
    score = row["score"]
    return [
        str(row["place"]) + ("=" if row["ties_with_first"] and row["place"] > 1 else ""),
        row["arm"],
        ", ".join(setting),
        fits,
        "?" if row["memory"] is None else gigabytes(row["memory"]),
        training,
        size(row["file_bytes"]),
        *([size(row["all_bytes"])] if many > 1 else []),
        "yes" if row["merges"] else "no",
        "no measurement" if score is None else f"{score['board']} {score['shown']}",
    ]


def ruled_out(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line for each reason, with all methods that it holds for."""
    lines: dict[tuple[str, str], list[str]] = {}
    for out in found["ruled_out"]:
        lines.setdefault((out["text"], out["cited"]), []).append(out["method"])
    return [{"text": f"{', '.join(names)}: {text}", "cited": cited} for (text, cited), names in lines.items()]


def least(found: Mapping[str, Any]) -> str:
    """What comes nearest where nothing fits."""
    needs = [out for out in found["ruled_out"] if out["needs"]]
    nearest = min(needs, key=lambda out: out["needs"], default=None)
    if nearest is None:
        return ""
    return f"the least is {nearest['method']}, which needs {gigabytes(nearest['needs'])} beyond the program"
