"""The ranking of methods on the terminal: the table, reasons with their sources, exclusions, and what to type next."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from luthier.cli.terminal.console import console, table
from luthier.core.language import translated
from luthier.core.units import duration, gigabytes
from luthier.planning.advisor.rank import EXPLAINED
from luthier.planning.advisor.reasons import bytes_text, work

SPARED = ("merges", ">file", "fits", "setting", ">training")
"""Columns of the table that are left out where the terminal is too narrow, the first of them first."""


WHO = {"your comparison": " (you)", "Luthier": "", "PEFT": " (PEFT)"}
"""Who measured a score, as the table marks it."""


def show_choice(found: Mapping[str, Any]) -> None:
    """Print the question, the ranking, reasons, limits, exclusions, and the next commands."""
    asked = found["question"]
    console.print(
        f"  {escape(asked['model'])}: a base of {asked['parameters']:,} parameters ({asked['family']}); "
        f"{escape(asked['said'])}"
    )
    console.print(f"  {machine(asked)}")
    if found["ranked"]:
        tables = (ranking_table(found, SPARED[:number]) for number in range(len(SPARED)))
        whole = console.options.update(max_width=10 * console.width)
        fits = (made for made in tables if console.measure(made, options=whole).maximum <= console.width)
        console.print(next(fits, ranking_table(found, SPARED)))
    else:
        needs = [out for out in found["ruled_out"] if out["needs"]]
        nearest = min(needs, key=lambda out: out["needs"], default=None)
        least = ""
        if nearest is not None:
            least = f": the least is {nearest['method']}, which needs {gigabytes(nearest['needs'])} beyond the program"
        console.print(f"  [bold red]nothing fits[/]{escape(least)}")
    _show_reasons(found)
    if found["behind"]:
        names = ", ".join(row["method"] for row in found["behind"])
        console.print(f"ranked lower, not estimated: {escape(names)}")
    if found["next"]:
        console.print(translated("next:"))
    for line in found["next"]:
        console.print(f"  [bold]{escape(line)}[/]", soft_wrap=True)


def _show_reasons(found: Mapping[str, Any]) -> None:
    """Print the measurements, what speaks for and against the first methods, limits, exclusions, and their sources."""
    sources: list[str] = []
    console.print(f"[bold]{translated('measurements, the nearest to your case first')}[/]")
    for row in found["evidence"]:
        console.print(f"  {_cited(row, sources)}")
    for row in found["ranked"][:EXPLAINED]:
        tie = f"  (tied with {found['ranked'][0]['method']} by what was measured)" if row["ties_with_first"] else ""
        console.print(f"[bold]{row['place']}. {row['method']}[/]{translated(tie) if row['place'] > 1 else ''}")
        for reason in row["reasons"]:
            sign = "-" if reason["weight"] < 0 else "+" if reason["weight"] > 0 else " "
            console.print(f"  {sign} {_cited(reason, sources)}")
    for title, rows in (("what this does not know", found["limits"]), ("excluded", excluded(found))):
        if rows:
            console.print(f"[bold]{translated(title)}[/]")
        for row in rows:
            console.print(f"  {_cited(row, sources)}")
    if sources:
        console.print(f"[bold]{translated('sources')}[/]")
    for number, source in enumerate(sources, 1):
        console.print(f"  [dim]{escape(f'[{number}]')} {escape(translated(source, inside=True))}[/]")


def _cited(row: Mapping[str, Any], sources: list[str]) -> str:
    """A reason with the number of its source, which is kept for the list at the end."""
    source = row["cited"].removeprefix("[").removesuffix("]")
    if source not in sources:
        sources.append(source)
    return f"{escape(translated(row['text']))} [dim]{escape(f'[{sources.index(source) + 1}]')}[/]"


def machine(asked: Mapping[str, Any]) -> str:
    """The device and its memory, and the other options."""
    kind = {"cuda": "GPU", "cpu": "CPU"}.get(asked["device"], asked["device"])
    memory = gigabytes(asked["memory"])
    here = f"this machine, {kind}: {gigabytes(asked['free'])} of {memory} free"
    parts = [here if asked["this_machine"] else f"another machine, {kind}: {memory}"]
    parts += [f"{asked[name]} {name}" for name in ("devices", "variants") if asked[name] > 1]
    if asked["latency"] is not None:
        parts.append("merged" if asked["latency"] == "merged" else f"{asked['latency']:g} ms per token")
    if asked["time"]:
        parts.append(f"at most {duration(asked['time'])}")
    return ", ".join(map(translated, parts))


def ranking_table(found: Mapping[str, Any], without: Sequence[str]) -> Table:
    """The ranking, `without` some of its columns."""
    many = found["question"]["variants"]
    rows: list[dict[str, str]] = []
    for row in found["ranked"]:
        training = duration(row["seconds"]) if row["seconds"] is not None else "?"
        if row["seconds"] is None and row["flops"] is not None:
            training = work(row["flops"])
        setting = [row["quantize"]] if row["quantize"] != "none" else []
        setting += ["checkpointing"] if row["gradient_checkpointing"] else []
        score = row["score"]
        cells = {
            ">": str(row["place"]) + ("=" if row["ties_with_first"] and row["place"] > 1 else ""),
            "method": row["method"] if "setting" in without else row["arm"],
            "setting": ", ".join(setting),
            "fits": {True: translated("yes"), False: translated("no"), None: "?"}[row["fits"]],
            ">memory": "?" if row["memory"] is None else gigabytes(row["memory"]),
            ">training": training,
            ">file": bytes_text(row["file_bytes"]),
            **({f">all {many}": bytes_text(row["all_bytes"])} if many > 1 else {}),
            "merges": translated("yes") if row["merges"] else translated("no"),
            "measured": "no measurement" if score is None else f"{score['board']} {score['shown']}{WHO[score['by']]}",
        }
        rows.append({head: cell for head, cell in cells.items() if head not in without})
    made = table(*rows[0], wrap=False)
    for cells in rows:
        made.add_row(*cells.values())
    return made


def excluded(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """One line for each reason, with all methods that it holds for."""
    lines: dict[tuple[str, str], list[str]] = {}
    for out in found["ruled_out"]:
        lines.setdefault((out["text"], out["cited"]), []).append(out["method"])
    return [{"text": f"{', '.join(names)}: {text}", "cited": cited} for (text, cited), names in lines.items()]
