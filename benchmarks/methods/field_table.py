"""The tables of methods on SmolLM2-135M, in README.md beside this file and in docs/methods.md, from results.jsonl.

python -m benchmarks.methods.field_table
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from statistics import mean
from typing import Any

from benchmarks.methods.evidence import BOARDS, FACTORS, HERE, OTHER_RATES, SEEDS, drawn, lines, score
from benchmarks.methods.rates import default
from benchmarks.record import Table, put
from luthier.comparison.significance import Draws

PAGE, DOCS = HERE / "README.md", HERE.parents[1] / "docs/methods.md"
COMMAND, RESULTS = "python -m benchmarks.methods.field_table", HERE / "results.jsonl"
TEXTS = "bits per byte of other texts"
UNITS = {"accuracy": "accuracy, %", "exact_match": "exact match, %", "bleu": "BLEU"}

COSTS = (
    ("trained", "trainable", 1e6, "{:,.3f} M"),
    ("file", "bytes", 1e6, "{:,.1f} MB"),
    ("memory", "memory", 1e9, "{:.2f} GB"),
    ("training", "train_seconds", 1.0, "{:,.0f} s"),
)
"""Heading, key of a line, unit, form."""
LATENCY = {"first token, base = 1": "first", "next, base = 1": "token", "row, base = 1": "row"}

Line = dict[str, Any]
Row = dict[str, str]
"""Heading of a column -> cell."""


def of_field(line: Line) -> bool:
    """Whether a line was made by benchmarks.methods.field."""
    return str(line["task"]).startswith("smollm2-")


def table_of(rows: list[Row]) -> list[str]:
    """Rows as a table of Markdown, in the order of the row with most columns, without columns that are empty in all."""
    heads = [head for head in max(rows, key=len) if any(row.get(head) for row in rows)]
    cells = [[row.get(head, "") for head in heads] for row in rows]
    return [f"| {' | '.join(each)} |" for each in (heads, ["---"] * len(heads), *cells)]


def interval(found: dict[str, Any]) -> str:
    """`84.4 (83.6 to 85.2)`; where seeds are missing, how many there are."""
    sides = f" ({found['low']:.1f} to {found['high']:.1f})" if found["low"] is not None else ""
    return f"{found['value']:.1f}{sides}" + (f", {found['seeds']} of {found['of']} seeds" if "of" in found else "")


def less(runs: list[Line], others: list[Line], metric: str, factor: float) -> str:
    """The score less another method's on the same rows and seeds, with its 95 % interval; empty where rows are not kept."""
    common = {line["seed"] for line in runs} & {line["seed"] for line in others}
    own, other = (drawn([line for line in each if line["seed"] in common], metric) for each in (runs, others))
    if own is None or other is None or len(own.sampled) != len(other.sampled):
        return ""
    apart = Draws(own.value - other.value, own.sampled - other.sampled)
    low, high = apart.interval
    return f"{factor * apart.value:+.1f} ({factor * low:+.1f} to {factor * high:+.1f})"


def over(runs: list[Line], read: Callable[[Line], Any], size: float = 1.0, form: str = "{:.2f}") -> str:
    """The mean of a fact over the runs that have it, in units of `size`; empty if none has it."""
    found = [value / size for line in runs if (value := read(line)) is not None]
    return form.format(mean(found)) if found else ""


def forgot(line: Line, side: str) -> Any:
    """Bits per byte of the general texts, `base` or `tuned`."""
    return line.get("forgetting", {}).get("all", {}).get(side)


def quality(arms: dict[str, list[Line]], task: str) -> list[Row]:
    """A row for the base and one for each method, the best first: what it scores and what it forgets."""
    metric = BOARDS[task]["metric"]
    factor, name = FACTORS.get(metric, 100.0), UNITS[metric]
    done = {arm: kept for arm, runs in arms.items() if (kept := [line for line in runs if metric in line])}
    scores = {arm: score(runs, metric, factor) for arm, runs in done.items()}
    made: list[Row] = []
    for arm in sorted(done, key=lambda each: -scores[each]["value"]):
        runs = done[arm]
        row = {"method": arm, "learning rate": over(runs, lambda line: line["lr"], form="{:.3g}")}
        row |= {"default": f"{default(arm, task):.3g}", name: interval(scores[arm])}
        if arm != "lora" and "lora" in done:
            row["less LoRA's"] = less(runs, done["lora"], metric, factor)
        made.append(row | {TEXTS: over(runs, lambda line: forgot(line, "tuned"), form="{:.3f}")})
    bases = [line for runs in done.values() for line in runs if f"base_{metric}" in line][:1]
    for line in bases:
        sides = {side: line.get(f"base_{metric}_{side}") for side in ("low", "high")}
        shown = {side: value if value is None else factor * value for side, value in sides.items()}
        row = {"method": "the base", name: interval({"value": factor * line[f"base_{metric}"], **shown})}
        made.insert(0, row | {TEXTS: over(bases, lambda line: forgot(line, "base"), form="{:.3f}")})
    return made + [{"method": arm, name: "refused"} for arm in arms if arm not in done]


def other_rates(arms: dict[str, list[Line]], task: str) -> list[Row]:
    """The runs at rates that the search did not choose, beside the one at the rate that it chose, by the rate."""
    metric = BOARDS[task]["metric"]
    factor, name = FACTORS.get(metric, 100.0), UNITS[metric]
    tried = [line for line in lines(OTHER_RATES) if line["task"] == task and metric in line]
    pairs = {(line["arm"], line["seed"]) for line in tried}
    chosen = [line for arm in arms.values() for line in arm if (line["arm"], line["seed"]) in pairs and metric in line]
    made = []
    for line in sorted([*tried, *chosen], key=lambda line: (line["arm"], line["seed"], line["lr"])):
        rate = f"**{line['lr']:.3g}**" if line in chosen else f"{line['lr']:.3g}"
        row = {"method": line["arm"], "seed": str(line["seed"]), "learning rate, searched in bold": rate}
        made.append(row | {name: f"{factor * line[metric]:.1f}", "held-out loss": f"{line['loss']:.3f}"})
    return made


def costs(arms: dict[str, list[Line]]) -> list[Row]:
    """A row for each method, the fewest trained parameters first: what a run of it takes, and what it leaves."""
    done = {arm: [line for line in runs if "train_seconds" in line] for arm, runs in arms.items()}
    seconds = {arm: mean(line["train_seconds"] for line in runs) for arm, runs in done.items() if runs}
    made = []
    for arm, runs in sorted(done.items(), key=lambda each: each[1][0]["trainable"] if each[1] else 0):
        row = {"method": arm}
        for head, key, size, form in COSTS:
            row[head] = over(runs, lambda line, key=key: line[key], size, form)  # type: ignore[misc]
        row["LoRA = 1"] = f"{seconds[arm] / seconds['lora']:.2f}" if {arm, "lora"} <= seconds.keys() else ""
        for head, what in LATENCY.items():
            row[head] = over(runs, lambda line, what=what: line.get("latency", {}).get(what))  # type: ignore[misc]
        made += [row] if runs else []
    return made


def whole() -> dict[str, dict[str, list[Line]]]:
    """Task -> method -> its lines, by seed; tasks without a line are left out."""
    found = sorted(
        filter(of_field, lines(RESULTS)), key=lambda line: (list(BOARDS).index(line["task"]), line["arm"], line["seed"])
    )
    return {
        task: {arm: list(runs) for arm, runs in groupby(of_task, key=lambda line: line["arm"])}
        for task, of_task in groupby(found, key=lambda line: line["task"])
    }


def sections() -> list[tuple[list[str], list[str]]]:
    """For each task that has results: what was run and the table of scores, and the table of costs."""
    made = []
    for task, arms in whole().items():
        one = next((line for runs in arms.values() for line in runs if "steps" in line), None)
        if one is None:
            continue
        ran = (
            f"{one['rows']:,} rows, {one['steps']} steps, {one['tokens']:,} tokens; {one['held_out']:,} held-out rows."
        )
        head = [f"**{BOARDS[task]['name']}**: {ran}", ""]
        others = other_rates(arms, task)
        tried = ["Whole runs at other rates:", "", *table_of(others), ""] if others else []
        made.append(([*head, *table_of(quality(arms, task)), "", *tried], [*table_of(costs(arms)), ""]))
    return made


def tables() -> list[Table]:
    found, last = sections(), [line for line in lines(RESULTS) if of_field(line)][-1:]
    note = "Nothing is measured yet."
    for line in last:
        said = ", ".join(f"{name} {line[name]}" for name in ("luthier", "torch", "peft", "transformers"))
        note = (
            f"{SEEDS} seeds unless a cell says fewer; {said}, Python {line['python']}, CPU, {line['threads']} thread."
        )
    short, full = [], []
    for scores, spent in found:
        short += scores
        full += [*scores, *spent]
    pages = {PAGE: full, DOCS: short}
    return [Table(page, COMMAND, "\n".join([*text, note]), (RESULTS,), of=of_field) for page, text in pages.items()]


if __name__ == "__main__":
    put(tables())
