"""The tables of README.md, from results.jsonl."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.record import Table
from benchmarks.serving.servers import ARMS

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results.jsonl", HERE / "README.md"
Lines = dict[tuple[str, int], list[dict[str, Any]]]


def tables(results: Path = RESULTS) -> list[Table]:
    lines: Lines = defaultdict(list)
    for text in results.read_text().splitlines() if results.is_file() else []:
        line = json.loads(text)
        lines[line["arm"], line["clients"]].append(line)
    return [Table(PAGE, "python -m benchmarks.serving.run --table", _tables(lines), (results,))]


def _tables(lines: Lines) -> str:
    counts = sorted({clients for arm, clients in lines if arm in ARMS})
    arms = [arm for arm in ARMS if any(key[0] == arm for key in lines)]
    methods = list(dict.fromkeys(arm for arm, _ in lines if arm.startswith("unmerged:")))
    made = [_head("server", counts)]
    made += [_row(ARMS[arm].about, arm, counts, lines) for arm in arms]
    made += ["", *_bars(lines)]
    if methods:
        counts = sorted({clients for arm, clients in lines if arm == "merged"})
        made += ["", _head("`luthier serve`", counts), _row("merged", "merged", counts, lines)]
        made += [_row(f"{arm.removeprefix('unmerged:')}, unmerged", arm, counts, lines) for arm in methods]
    any_line = next(iter(lines.values()))[0] if lines else {}
    tokens = sorted({str(line["tokens"]) for several in lines.values() for line in several}, reverse=True)
    made += [
        "",
        f"Mean over rounds; {any_line.get('layers')} layers, {any_line.get('dtype')}, "
        f"{' or '.join(tokens)} new tokens; {any_line.get('processors')} processors, no GPU; luthier "
        f"{any_line.get('luthier')}, torch {any_line.get('torch')}, transformers {any_line.get('transformers')}, "
        f"Python {any_line.get('python')}.",
    ]
    return "\n".join(made)


def _head(first: str, counts: list[int]) -> str:
    columns = [f"{n} client{'s' if n > 1 else ''}: tokens/s, first token, each" for n in counts]
    return f"| {first} | {' | '.join(columns)} |\n|{'---|' * (len(counts) + 1)}"


def _row(shown: str, arm: str, counts: list[int], lines: Lines) -> str:
    cells = []
    for clients in counts:
        found = lines.get((arm, clients), [])
        each = (
            {key: mean(line[key] for line in found) for key in ("tokens_per_second", "first_ms", "each_ms")}
            if found
            else {}
        )
        cells.append(
            f"**{each['tokens_per_second']:.1f}**, {each['first_ms']:.0f} ms, {each['each_ms']:.0f} ms" if found else ""
        )
    return f"| {shown} | {' | '.join(cells)} |"


def _bars(lines: Lines) -> list[str]:
    """Ratios round by round at eight clients, each with its spread."""
    told = []
    peers = [arm for arm in ("transformers", "transformers-cb", "llama.cpp") if (arm, 8) in lines]
    pairs = [("luthier", peer) for peer in peers] + [("luthier-lora4", "luthier")]
    for one, other in pairs:
        rounds = {line["round"]: line["tokens_per_second"] for line in lines.get((other, 8), [])}
        found = [
            line["tokens_per_second"] / rounds[line["round"]]
            for line in lines.get((one, 8), [])
            if line["round"] in rounds
        ]
        if found:
            told.append(
                f"- 8 clients, {ARMS[one].about} over {ARMS[other].about}: **{mean(found):.2f}** times the tokens a "
                f"second ({min(found):.2f} to {max(found):.2f}, {len(found)} rounds)."
            )
    return told
