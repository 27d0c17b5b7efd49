"""The tables of README.md beside this file and of docs/methods.md, from results.jsonl, both searches' lines and papers.py.

Those of benchmarks.methods.field_table are written as well.

python -m benchmarks.methods.table
"""

from __future__ import annotations

from collections import defaultdict
from statistics import mean, stdev
from typing import Any

from benchmarks.methods import field_table
from benchmarks.methods.evidence import SWEEP, WHOLE_SWEEP
from benchmarks.methods.papers import PAPERS, pairs
from benchmarks.methods.rates import searches
from benchmarks.methods.run import ARMS, HERE, MAJORITY, TASKS, read
from benchmarks.record import Table, put

PAGE, DOCS = HERE / "README.md", HERE.parents[1] / "docs/methods.md"
COMMAND, RESULTS = "python -m benchmarks.methods.table", HERE / "results.jsonl"

SEEDS = 3

COLUMNS = {
    "sst2": ("accuracy", "SST-2, accuracy", 100),
    "cola": ("mcc", "CoLA, MCC", 100),
    "clinc150": ("accuracy", "CLINC150, accuracy", 100),
    "e2e": ("bleu", "E2E NLG, BLEU", 1),
    "reviews": ("accuracy", "reviews, accuracy", 100),
    "assistant": ("loss", "assistant, loss", 1),
}
"""Task -> its metric, the heading, and the factor it is shown with."""

BASES = {"encoder": "BERT of 22 M", "builtin": "Qwen2 of 3.3 M"}

Lines = dict[tuple[str, str], list[dict[str, Any]]]


def own(line: dict[str, Any]) -> bool:
    """Whether a line was made by benchmarks.methods.run."""
    return not field_table.of_field(line)


def grouped() -> Lines:
    found: Lines = defaultdict(list)
    for line in filter(own, read(RESULTS)):
        found[line["task"], line["arm"]].append(line)
    return found


def cell(lines: list[dict[str, Any]], metric: str, factor: float) -> str:
    """Mean and spread over the seeds; where not all have run, how many."""
    if not lines:
        return ""
    if lines[0]["arm"] == MAJORITY:
        return f"{lines[0][metric] * factor:.1f}"
    if "refused" in lines[0]:
        return "refused"
    values = [line[metric] * factor for line in lines if line.get(metric) is not None]
    if not values:
        return ""
    digits = 3 if metric == "loss" else 1
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}" + (f" ({len(values)} of {SEEDS})" if len(values) < SEEDS else "")


def size(count: float) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def quality(found: Lines) -> list[str]:
    """One row a method: what it reaches, and what it trains."""
    heads = [f"{title} (held out {held(found, task)})" for task, (_, title, _) in COLUMNS.items()]
    rows = [f"| method | {' | '.join(heads)} | SST-2: trained | share | file |", "|---" * (len(COLUMNS) + 4) + "|"]
    for arm in [MAJORITY, *ARMS]:
        cells = [cell(found[task, arm], metric, factor) for task, (metric, _, factor) in COLUMNS.items()]
        cost = ["", "", ""]
        if lines := [line for line in found["sst2", arm] if "trainable" in line]:
            one = lines[0]
            cost = [
                size(one["trainable"]),
                f"{one['trainable'] / one['parameters']:.2%}",
                f"{one['bytes'] / 1e6:.2f} MB",
            ]
        rows.append(f"| {arm} | {' | '.join([*cells, *cost])} |")
    return rows


def held(found: Lines, task: str) -> int:
    return next((line["held_out"] for line in found[task, "full"] if "held_out" in line), 0)


def behind(found: Lines) -> list[str]:
    """How far each method stays behind full fine-tuning on SST-2, in points."""
    best = mean(line["accuracy"] for line in found["sst2", "full"]) * 100
    lines = []
    for arm in ARMS:
        values = [line["accuracy"] * 100 for line in found["sst2", arm] if "accuracy" in line]
        if arm != "full" and values:
            lines.append((mean(values) - best, arm))
    within = [f"{arm} ({gap:+.1f})" for gap, arm in sorted(lines, reverse=True) if gap >= -2]
    beyond = [f"{arm} ({gap:+.1f})" for gap, arm in sorted(lines, reverse=True) if gap < -2]
    return [
        f"Within 2 points of full fine-tuning on SST-2: {', '.join(within) or 'none'}.",
        "",
        f"Further behind: {', '.join(beyond) or 'none'}.",
    ]


def rates() -> list[str]:
    """Held-out loss at each learning rate of the searches."""
    found = searches()
    rows = ["| task | method | held-out loss at each learning rate |", "|---|---|---|"]
    for task in dict.fromkeys([*TASKS, *(task for task, _ in found)]):
        for arm in dict.fromkeys([*ARMS, *(arm for _, arm in found)]):
            if losses := found.get((task, arm)):
                best = min(losses, key=lambda lr: losses[lr])
                shown = [
                    f"**{lr:g}: {loss:.3f}**" if lr == best else f"{lr:g}: {loss:.3f}"
                    for lr, loss in sorted(losses.items())
                ]
                rows.append(f"| {task} | {arm} | {', '.join(shown)} |")
    return rows


def beside(found: Lines) -> list[str]:
    """For each task that papers print, our scores beside theirs, and the pairs of methods by their order."""
    made = []
    for task, papers in PAPERS.items():
        metric, title, factor = COLUMNS[task]
        named = [arm for arm in ARMS if any(arm in paper.scores for paper in papers)]
        heads = [f"{paper.source}; {paper.base}" for paper in papers]
        made += [f"**{title}**", "", f"| method | here; {BASES[TASKS[task].base]} | {' | '.join(heads)} |"]
        made.append("|---" * (len(papers) + 2) + "|")
        for arm in named:
            theirs = [f"{paper.scores[arm]:.1f}" if arm in paper.scores else "" for paper in papers]
            made.append(f"| {arm} | {cell(found[task, arm], metric, factor)} | {' | '.join(theirs)} |")
        ours = {arm: spread for arm in named if (spread := _spread(found[task, arm], metric, factor))}
        made.append("")
        for paper in papers:
            same, other, undecided = pairs(ours, paper.scores)
            kinds = {
                "in the same order": same,
                "in the other": other,
                "undecided (within the spread of seeds, or one seed alone)": undecided,
            }
            told = [
                f"{len(each)} {kind}" + (f" ({', '.join(each)})" if kind == "in the other" and each else "")
                for kind, each in kinds.items()
            ]
            made.append(f"- {paper.source}: of {sum(map(len, kinds.values()))} pairs {'; '.join(told)}.")
        made.append("")
    return made[:-1]


def _spread(lines: list[dict[str, Any]], metric: str, factor: float) -> tuple[float, float] | None:
    """Mean and standard deviation; with one seed no difference is told apart from it."""
    values = [line[metric] * factor for line in lines if line.get(metric) is not None]
    if not values:
        return None
    return mean(values), stdev(values) if len(values) > 1 else float("inf")


def tables() -> list[Table]:
    found = grouped()
    environment = [line for line in read(RESULTS) if own(line)][-1]
    said = ", ".join(f"{name} {environment[name]}" for name in ("luthier", "torch", "peft", "transformers"))
    seeds = sorted({line["seed"] for lines in found.values() for line in lines})
    made = [
        *quality(found),
        "",
        f"Mean and standard deviation over seeds {', '.join(map(str, seeds))}; {said}, Python "
        f"{environment['python']}, CPU, {environment['threads']} thread a run.",
        "",
        *behind(found),
        "",
        "## Learning rates",
        "",
        *rates(),
    ]
    return [
        Table(PAGE, COMMAND, "\n".join(made), (RESULTS, SWEEP, WHOLE_SWEEP), of=own),
        Table(DOCS, COMMAND, "\n".join(beside(found)), (RESULTS,), of=own),
    ]


if __name__ == "__main__":
    put([*tables(), *field_table.tables()])
