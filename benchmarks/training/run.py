"""Training speed, memory and time to the first step beside what users would otherwise run: same model, rows and labels.

    python -m benchmarks.training.environments                  # once: the others' environments
    python -m benchmarks.training.run --rows 64 --rounds 3      # all 24 layers: hours on two cores
    python -m benchmarks.training.run --table

Arms take turns within a round, each in a process and an environment of its own; README.md has what is measured and how.
`--try` gives the arms other options than their best ones and prints what comes of it without keeping it:

    python -m benchmarks.training.run --layers 2 --rows 32 --arms trl --try layout=packed pack=512 micro=2 accumulate=4
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import keep, put
from benchmarks.training import contest, environments, work
from benchmarks.training.make import SHAPES, make
from benchmarks.training.table import RESULTS, tables

BYTES = {"fp32": 4, "bf16": 2, "plain": 2}


def runnable(names: list[str]) -> list[str]:
    """Those of the arms that this machine can run; the others with a line that says what is missing."""
    import torch

    kept = []
    for name in names:
        arm = contest.ARMS[name]
        if arm.needs_cuda and not torch.cuda.is_available():
            print(f"{name}: left out, it needs CUDA and this machine has none")
        elif environments.python_of(arm.environment) is None:
            print(f"{name}: left out; for it: python -m benchmarks.training.environments {arm.environment}")
        else:
            kept.append(name)
    return kept


def call(name: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One arm in a process of its own: the line it printed, and when it was started."""
    arm = contest.ARMS[name]
    command = [str(environments.python_of(arm.environment)), str(contest.ARMS_FOLDER / arm.script), str(folder)]
    quiet = {"HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}
    began = time.time()
    done = subprocess.run(
        [*command, json.dumps(options)], capture_output=True, text=True, check=False, env=os.environ | quiet
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("made ")]
    if done.returncode or not found:
        raise SystemExit(f"{name} did not finish:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    made: dict[str, Any] = json.loads(found[-1].removeprefix("made "))
    if "first_at" in made:
        made["to_first_step"] = round(made.pop("first_at") - began, 2)
    return made


def start_loss(name: str, folder: Path, options: dict[str, Any]) -> float:
    """Loss of the first rows before training, in an arm's own layout, but in float32, where rounding hides nothing."""
    made = call(name, folder, options | {"check": True, "precision": "fp32"})
    return round(float(made["start_loss"]), 5)


def measured(name: str, folder: Path, options: dict[str, Any], needs: dict[str, int]) -> dict[str, Any]:
    """One arm's line of results; stops where it saw other tokens or labels than the rest."""
    made = call(name, folder, options)
    seen = made.pop("seen_tokens"), made.pop("seen_learned"), made.pop("seen_ids") or needs["ids"]
    if seen != (needs["tokens"], needs["learned_tokens"], needs["ids"]):
        raise SystemExit(f"{name} saw {seen} tokens, learned ones and sum of ids, not as in tokens.json: {needs}")
    losses = made.pop("losses")
    return made | {
        "arm": name,
        "options": options,
        "seconds": round(made["seconds"], 3),
        "first": round(made["first"], 3),
        "tokens_per_second": round(needs["tokens"] / made["seconds"], 2),
        "first_loss": round(losses[0], 4),
        "mean_loss": round(sum(losses) / len(losses), 4),
        "flops_per_second": round(needs["flops"] / made["seconds"]),
        "beyond_weights": made["peak"] - needs["weights"] * BYTES[options["precision"]],
    }


def tried(texts: list[str]) -> dict[str, Any]:
    """`key=value` as options; values are JSON where they can be."""
    made: dict[str, Any] = {}
    for text in texts:
        key, _, value = text.partition("=")
        try:
            made[key] = json.loads(value)
        except json.JSONDecodeError:
            made[key] = value
    return made


def rounds(given: argparse.Namespace, names: list[str], learned: str, folder: Path) -> None:
    settings = make(folder, given.shape, given.layers or SHAPES[given.shape], given.rows, learned)
    needs, invocation, other = work.needed(folder), int(time.time()), tried(given.try_)
    options = {name: contest.ARMS[name].settings(given.shape) | other for name in names}
    start = {name: start_loss(name, folder, options[name]) for name in names}
    print(f"loss at start: {start}", flush=True)
    exact = [loss for name, loss in start.items() if not options[name].get("quantize")]
    if max(exact) - min(exact) > 1e-3:
        raise SystemExit("the loss at start differs: somebody computes something else")
    common = {key: settings[key] for key in ("shape", "layers", "rows", "learned")} | needs
    common |= {"processors": len(os.sched_getaffinity(0)), "invocation": invocation}
    before = work.peak()
    for number in range(given.rounds):
        lines = []
        for name in names:
            line = measured(name, folder, options[name], needs) | common | {"round": number, "start_loss": start[name]}
            lines.append(line)
            told = ("arm", "tokens_per_second", "to_first_step", "beyond_weights", "mean_loss")
            print(json.dumps({key: line[key] for key in told}), flush=True)
            for left in folder.glob("out-*"):
                shutil.rmtree(left)
        after = work.peak()
        for line in lines:
            line["peak_gflops"] = max(before["peak"], after["peak"])
            line["share_of_peak"] = round(line["flops_per_second"] / line["peak_gflops"] / 1e9, 4)
        print(
            f"peak {before['peak']} before, {after['peak']} GFLOP/s after; shares of it: "
            f"{ {line['arm']: line['share_of_peak'] for line in lines} }",
            flush=True,
        )
        before = after
        if not other:
            for line in lines:
                keep(RESULTS, line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2-0.5b")
    parser.add_argument("--layers", type=int, help="of the first shape; all 24 unless told")
    parser.add_argument("--rows", type=int, default=64, help="a multiple of 16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--learned", choices=["half", "two", "both"], default="both")
    parser.add_argument(
        "--arms", nargs="+", choices=contest.ARMS, default=[n for n, arm in contest.ARMS.items() if arm.usual]
    )
    parser.add_argument("--try", dest="try_", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--table", action="store_true", help="put the results into README.md")
    given = parser.parse_args()
    if given.table:
        put(tables())
        return
    names = runnable(given.arms)
    for learned in ("half", "two") if given.learned == "both" else (given.learned,):
        folder = Path(tempfile.mkdtemp(prefix="luthier-training-"))
        try:
            rounds(given, names, learned, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
