r"""What an evaluation of 100 rows costs beside plain transformers and lm-evaluation-harness, on one real model.

    python -m benchmarks.evaluation.run --model DIR --sst2 FILE --e2e FILE --dialogsum FILE \
        --before TREE --harness PYTHON --rounds 2
    python -m benchmarks.evaluation.run --model DIR --sst2 FILE --set model.dtype=bfloat16

`--before` is a checkout of Luthier to compare with, `--harness` a Python with lm-evaluation-harness in it; without them
these columns are left out, and so are data sets that are not given. Each way runs in a process of its own with one
thread, in alternation. Processor seconds count, for they depend less on other work than the clock does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[2]
PROMPT = 'data.format.prompt="Is this review positive or negative?\\n\\n{text}"'
LABELS = ["data.format.name=classification", "data.format.names=[negative,positive]", PROMPT]


def rows_of(name: str, file: Path, count: int, target: Path) -> list[str]:
    """Write the rows to evaluate on; returns the overrides that read them."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if name == "dialogsum":
        rows = [
            {"instruction": "Summarize this dialogue.", "input": r["dialogue"], "output": r["summary"]} for r in rows
        ]
    elif name == "e2e":
        ask, once = "Write a sentence about this restaurant.", {row["mr"]: row["ref"] for row in rows}
        rows = [{"instruction": ask, "input": mr, "output": ref} for mr, ref in once.items()]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]), encoding="utf-8")
    return LABELS if name == "sst2" else []


def measured(python: str, tree: Path, way: str, words: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{tree}/src:{ROOT}"}
    command = [python, "-m", "benchmarks.evaluation.arm", way, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(name: str, found: dict[str, list[dict[str, Any]]]) -> None:
    ours = found["luthier"]
    print(f"\n{name}\n\n| | processor seconds | over luthier | calls | tokens | answers as ours | loss per row |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for way, rounds in found.items():
        seconds = mean(each["seconds"] for each in rounds)
        ratios = [one["seconds"] / own["seconds"] for one, own in zip(rounds, ours, strict=True)]
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        same = sum(one.strip() == other.strip() for one, other in zip(rounds[0]["said"], ours[0]["said"], strict=True))
        same_labels = rounds[0]["chosen"] == ours[0]["chosen"]
        print(
            f"| {way} | {seconds:.1f} | {mean(ratios):.2f}{spread} | {rounds[0]['passes']} | {rounds[0]['tokens']:,} "
            f"| {same} of {len(ours[0]['said'])}{'' if same_labels else ', other labels'} "
            f"| {mean(rounds[0]['losses']):.5f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    names = ("sst2", "e2e", "dialogsum")
    for name in names:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--harness")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the recipe")
    given = parser.parse_args()
    ways = {"luthier": (sys.executable, ROOT, "luthier")}
    if given.before:
        ways["luthier before"] = (sys.executable, given.before.resolve(), "luthier")
    ways["transformers"] = (sys.executable, ROOT, "transformers")
    if given.harness:
        ways["lm-evaluation-harness"] = (given.harness, ROOT, "harness")
    for name in names:
        if (file := getattr(given, name)) is None:
            continue
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        with tempfile.TemporaryDirectory() as place:
            rows = Path(place, f"{name}.jsonl")
            words = [str(given.model.resolve()), str(rows), *rows_of(name, file, given.rows, rows), *given.set]
            for number in range(given.rounds):
                for way, (python, tree, arm) in list(ways.items())[:: 1 if number % 2 == 0 else -1]:
                    found[way].append(measured(python, tree, arm, words))
                    print(f"{name}, round {number + 1}: {way} {found[way][-1]['seconds']:.1f} s", flush=True)
        table(name, found)


if __name__ == "__main__":
    main()
