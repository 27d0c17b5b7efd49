"""The results as tables in README.md: ratios are taken round by round, with mean and range."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.record import Table
from benchmarks.training.contest import ARMS

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results.jsonl", HERE / "README.md"

Line = dict[str, Any]

BARS = {"trl": 4.0, "trainer": 2.5, "trainer-recipe": 4.0}
"""How many times their useful tokens per second Luthier's must be, on all 24 layers and two cores."""


def spread(values: Sequence[float], form: str) -> str:
    if len(values) == 1:
        return form.format(values[0])
    return f"{form.format(mean(values))} ({form.format(min(values))} to {form.format(max(values))})"


def paired(ours: list[Line], theirs: list[Line], ratio: Callable[[Line, Line], float]) -> list[float]:
    """The ratio of the two in every round that both ran in."""
    there = {(line["invocation"], line["round"]): line for line in theirs}
    keys = [((line["invocation"], line["round"]), line) for line in ours]
    return [ratio(line, there[key]) for key, line in keys if key in there]


def speedup(ours: Line, theirs: Line) -> float:
    return ours["tokens_per_second"] / theirs["tokens_per_second"]


def memory(ours: Line, theirs: Line) -> float:
    return ours["beyond_weights"] / theirs["beyond_weights"]


def rows_of(arms: dict[str, list[Line]]) -> list[str]:
    made = [
        "| what | useful tokens/s | Luthier's over it | command to first step | memory beyond the weights | "
        "Luthier's of it | share of peak | loss at start | mean loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ours = arms.get("luthier", [])
    for name, arm in ARMS.items():
        if not (runs := arms.get(name)):
            continue
        faster, leaner = paired(ours, runs, speedup), paired(ours, runs, memory)
        made.append(
            f"| {arm.title} | {spread([run['tokens_per_second'] for run in runs], '{:.0f}')} | "
            f"{spread(faster, '{:.2f}') if faster else ''} | {spread([run['to_first_step'] for run in runs], '{:.1f}')} s | "
            f"{max(run['beyond_weights'] for run in runs) / 1e6:,.0f} MB | {spread(leaner, '{:.0%}') if leaner else ''} | "
            f"{spread([run['share_of_peak'] for run in runs], '{:.0%}')} | {runs[0]['start_loss']:.3f} | "
            f"{runs[0]['mean_loss']:.3f} |"
        )
    return made


def bars_of(arms: dict[str, list[Line]]) -> list[str]:
    """What was promised, and what came of it: the mean over the rounds decides."""
    ours = arms.get("luthier", [])
    found: list[tuple[str, str, str, bool]] = []
    for name, least in BARS.items():
        if ratios := paired(ours, arms.get(name, []), speedup):
            text = f"useful tokens/s over those of: {ARMS[name].title}"
            found.append((text, f"at least {least:g}", spread(ratios, "{:.2f}"), mean(ratios) >= least))
    others = [name for name in arms if not name.startswith("luthier")]
    if ours and others:
        leanest = min(others, key=lambda name: mean(line["beyond_weights"] for line in arms[name]))
        shares = paired(ours, arms[leanest], memory)
        text = f"memory beyond the weights, of the leanest of them ({leanest})"
        found.append((text, "at most 40%", spread(shares, "{:.0%}"), mean(shares) <= 0.4))
    if ours:
        shares = [line["share_of_peak"] for line in ours]
        found.append(("share of the peak", "at least 60%", spread(shares, "{:.0%}"), mean(shares) >= 0.6))
    return ["", "| promised | bar | measured | |", "|---|---|---|---|"] + [
        f"| {text} | {bar} | {value} | {'held' if held else 'missed'} |" for text, bar, value, held in found
    ]


def planned_of(arms: dict[str, list[Line]]) -> list[str]:
    """What `luthier plan` estimated beside what was used: memory of the whole process, time of all steps."""
    made: list[str] = []
    for name, runs in arms.items():
        known = [line for line in runs if "planned_memory" in line]
        if not known:
            continue
        shares = {
            what: [line[key]["planned"] / line[key]["measured"] for line in known]
            for what, key in (("memory", "planned_memory"), ("time", "planned_time"))
        }
        off = max(abs(share - 1) for share in shares["memory"])
        made.append(
            f"Planned over measured, {ARMS[name].title}: memory {spread(shares['memory'], '{:.2f}')} (promised: within "
            f"10 %; {'held' if off <= 0.1 else 'missed'}), time {spread(shares['time'], '{:.2f}')}."
        )
    return ["", *made] if made else []


def foot_of(arms: dict[str, list[Line]]) -> str:
    lines = [line for runs in arms.values() for line in runs]
    one = lines[0]
    versions: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        for name, version in line["versions"].items():
            versions[name].add(version)
    told = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in versions.items())
    peaks = [line["peak_gflops"] for line in lines]
    number = len({(line["invocation"], line["round"]) for line in lines})
    return (
        f"{number} rounds of {one['rows']} rows ({one['tokens']:,} tokens, {one['learned_tokens']:,} learned), "
        f"{one['processors']} processors, peak {min(peaks):.0f} to {max(peaks):.0f} GFLOP/s; {told}."
    )


def tables() -> list[Table]:
    found: dict[tuple[str, int, str], dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    if not RESULTS.is_file():
        raise SystemExit("there are no results yet: python -m benchmarks.training.run")
    for text in RESULTS.read_text().splitlines():
        line = json.loads(text)
        found[line["shape"], line["layers"], line["learned"]][line["arm"]].append(line)
    made: list[str] = []
    for (shape, layers, learned), arms in sorted(found.items(), reverse=True):
        title = "half of the tokens" if learned == "half" else "two tokens a row"
        made += [f"### {shape}, {layers} layers, {title} learned", "", *rows_of(arms)]
        if (shape, layers) == ("qwen2-0.5b", 24):
            made += bars_of(arms)
        made += [*planned_of(arms), "", foot_of(arms), ""]
    return [Table(PAGE, "python -m benchmarks.training.run --table", "\n".join(made), (RESULTS,))]
