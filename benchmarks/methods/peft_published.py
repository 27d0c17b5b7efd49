"""PEFT's own published comparison of methods: its figures for `luthier choose`, and their table in docs/methods.md.

    git clone --depth 1 https://github.com/huggingface/peft
    python -m benchmarks.methods.peft_published peft   # read the figures of that clone's commit
    python -m benchmarks.methods.peft_published        # the table of docs/methods.md again, from what was read

Only figures and settings are kept, with the commit that they stand in. PEFT is under the Apache License 2.0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.methods import evidence
from benchmarks.record import Table, put
from luthier.methods.base import METHODS, QUANTIZED
from luthier.methods.peft import known_type
from luthier.planning.advisor.evidence import Score, peft_board, setting_of, wilson

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "src/luthier/planning/advisor/peft_published.json"
DOCS = ROOT / "docs/methods.md"
COMMAND, END = "python -m benchmarks.methods.peft_published", "<!-- end of PEFT's -->"
SOURCE, FOLDER = "https://github.com/huggingface/peft", "method_comparison/MetaMathQA/results"

ONE_RATE = evidence.HERE / "one_rate.jsonl"
"""Made by `python -m benchmarks.methods.run assistant --arms adalora ia3 oft vera --lr 0.002 --out` this file."""

EXAMPLES = 1319
"""Questions of GSM8K's test set: each published accuracy is a whole number of them."""
OWN = {
    "PREFIX_TUNING": "p_tuning_v2",  # without projection PEFT's prefix is what P-Tuning v2 trains
    "PROMPT_TUNING": "prompt",
    "LN_TUNING": "layernorm",
}
"""Type of PEFT -> the method here, where that has another name."""
SHARED = {
    "model": "model_id",
    "precision": "dtype",
    "steps": "max_steps",
    "batch_size": "batch_size",
    "max_length": "max_seq_length",
    "scheduler": "lr_scheduler",
    "seed": "seed",
}
"""What all runs must have in common: our name -> name in the training settings of a result."""
SETTINGS = {
    "rank": ("target_r", "r"),
    "alpha": ("lora_alpha", "alpha"),
    "targets": ("target_modules",),
    "virtual_tokens": ("num_virtual_tokens",),
}
"""Settings that are kept: our name -> their names in PEFT."""


def git(clone: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(clone), *words], capture_output=True, text=True, check=True).stdout


def method_of(run: dict[str, Any]) -> str | None:
    """The method here that is the same: a method, a preset, or a type of method peft; None where Luthier has none."""
    config, train = run["peft_config"], run["train_config"]
    if config is None:
        return "full"
    if config["peft_type"] == "LORA":
        other = (
            config.get("use_bdlora") or config["init_lora_weights"] is not True or train["optimizer_type"] != "AdamW"
        )
        return None if other else "dora" if config["use_dora"] else "rslora" if config["use_rslora"] else "lora"
    if config.get("prefix_projection"):
        return "prefix"
    if train.get("init_kv_cache_prefix"):  # starts from the keys and values of a text
        return None
    name = OWN.get(config["peft_type"], config["peft_type"].lower())
    try:
        return name if name in METHODS.names() else known_type(name)
    except ValueError:  # refused, or not there
        return None


def run_of(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """One line of figures. ValueError for a run that did not end, or was not judged by the whole test set."""
    run, train, meta = result["run_info"], result["train_info"], result["meta_info"]
    last, config = train["metrics"][-1], run["peft_config"] or {}
    right = last["test accuracy"] * EXAMPLES
    if train["status"] != "success" or abs(right - round(right)) > 1e-6:
        raise ValueError(f"{name}: status {train['status']}, {right:.1f} of {EXAMPLES} questions")
    own = {key: next((config[each] for each in names if config.get(each)), None) for key, names in SETTINGS.items()}
    if isinstance(own["targets"], list):
        own["targets"] = ",".join(sorted(own["targets"]))
    return {
        "experiment": name,
        "method": method_of(run),
        "lr": run["train_config"]["optimizer_kwargs"]["lr"],
        **{key: value for key, value in own.items() if value is not None},
        "accuracy": round(last["test accuracy"], 6),
        "train_loss": round(last["train loss"], 4),
        "forgetting": round(last["forgetting"], 4),
        "memory_max": train["accelerator_memory_max"],
        "memory_average": train["accelerator_memory_reserved_avg"],
        "memory_99th": train["accelerator_memory_reserved_99th"],
        "seconds": round(train["train_time"], 1),
        "bytes": train["file_size"],
        "trainable": train["num_trainable_params"],
        "parameters": train["num_total_params"],
        "date": run["created_at"][:10],
        "peft": meta["package_info"]["peft-version"],
        "torch": meta["package_info"]["torch-version"],
    }


def read(clone: Path) -> dict[str, Any]:
    """The comparison as it stands in the clone's commit."""
    commit, date = git(clone, "log", "-1", "--format=%H %cs").split()
    names = [name for name in git(clone, "ls-tree", "--name-only", commit, f"{FOLDER}/").split() if ".json" in name]
    results = {Path(name).stem: json.loads(git(clone, "show", f"{commit}:{name}")) for name in names}
    train = [result["run_info"]["train_config"] for result in results.values()]
    shared = {key: {each[name] for each in train} for key, name in SHARED.items()}
    shared["hardware"] = {result["meta_info"]["system_info"]["accelerator"] for result in results.values()}
    if odd := {key: values for key, values in shared.items() if len(values) != 1}:
        raise ValueError(f"the runs differ in {odd}: this script takes them for one comparison")
    one: dict[str, Any] = {key: values.pop() for key, values in shared.items()}
    return {
        "made_by": "python -m benchmarks.methods.peft_published CLONE",
        "source": SOURCE,
        "folder": FOLDER,
        "commit": commit,
        "date": date,
        "license": "Apache-2.0",
        "trained_on": "MetaMathQA",
        "tested_on": "GSM8K",
        "examples": EXAMPLES,
        "rows": one["steps"] * one["batch_size"],
        **one,
        "runs": [run_of(name, result) for name, result in results.items()],
    }


def text(found: dict[str, Any]) -> str:
    """As it stands in the file: a line for each run."""
    runs = ",\n".join(f"  {json.dumps(run)}" for run in found["runs"])
    return json.dumps(found | {"runs": []}, indent=1).replace('"runs": []', f'"runs": [\n{runs}\n ]') + "\n"


def best_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best run of each method, the best first; what Luthier lacks under PEFT's name."""
    best: dict[str, dict[str, Any]] = {}
    for run in sorted(runs, key=lambda run: float(run["accuracy"])):
        kind, _, setting = run["experiment"].partition("--")
        name = run["method"] or (f"lora, {setting.rpartition('-')[2]}" if kind == "lora" else kind)
        best[name] = run | {"name": name}
    return sorted(best.values(), key=lambda run: -float(run["accuracy"]))


def here(name: str | None) -> str:
    """How a method is named in a recipe of Luthier."""
    if name is None:
        return "none"
    return f"`{name}`" if name in METHODS.names() or name in METHODS.presets else f"`peft`, type `{name}`"


def table(found: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """Each method's best run of PEFT, beside what this repository measured: time of a step and free answers."""
    boards = [board for board in measured["boards"] if board["learns"] == "answers"]
    steps = {name: arm["seconds"] for name, arm in measured["speed"]["arms"].items()}
    usual = next(run["seconds"] for run in found["runs"] if run["experiment"] == "lora--llama-3.2-3B-rank32")
    heads = ["PEFT's run", "here", "settings", "GSM8K, %", "forgot, nats", "memory, GB", "file, MB", "time, LoRA = 1"]
    heads += ["time here, LoRA = 1", *(f"{board['name']}, {board['metric']}, here" for board in boards)]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for run in best_of(found["runs"]):
        low, high = wilson(run["accuracy"], found["examples"])
        cells = [
            run["name"] if run["method"] is None else run["experiment"].partition("--")[0],
            here(run["method"]),
            setting_of(run),
            f"{100 * run['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
            f"{run['forgetting']:.2f}",
            f"{run['memory_max'] / 1e9:.1f}",
            f"{run['bytes'] / 1e6:.1f}",
            f"{run['seconds'] / usual:.2f}",
            f"{steps[run['method']] / steps['lora']:.2f}" if run["method"] in steps else "",
        ]
        ours = [
            Score(**board["scores"][run["method"]]) if run["method"] in board["scores"] else None for board in boards
        ]
        rows.append(f"| {' | '.join([*cells, *(one.shown(brief=True) if one else '' for one in ours)])} |")
    (rate, number), every = Counter(run["lr"] for run in found["runs"]).most_common(1)[0], len(found["runs"])
    note = f"huggingface/peft at {found['commit'][:10]} ({found['date']}); {number} of {every} runs have a learning rate of {rate:g}."
    return [*rows, "", note, "", *(order(board) for board in (*boards, one_rate()))]


def one_rate() -> dict[str, Any]:
    """The dialogues again, each method at LoRA's learning rate, as most of PEFT's runs are."""
    again, arms = evidence.lines(ONE_RATE), dict[str, list[dict[str, Any]]]()
    task, rate = again[0]["task"], again[0]["lr"]
    usual = [line for line in evidence.lines(evidence.HERE / "results.jsonl") if line["task"] == task]
    for line in [*again, *(line for line in usual if line["lr"] == rate)]:
        arms.setdefault(line["arm"], []).append(line)
    made = evidence.board(task, arms)
    assert made is not None
    return made | {"name": f"{made['name']} with the learning rate {rate:g} for all"}


def order(board: dict[str, Any]) -> str:
    """Pairs of methods that both measured, by whether their order is the same; undecided where intervals overlap."""
    theirs, ours = peft_board().scores, {name: Score(**score) for name, score in board["scores"].items()}
    same, other, open_ = list[str](), list[str](), 0
    shared = [name for name in theirs if name in ours and name not in QUANTIZED]
    for one, two in combinations(shared, 2):
        there, own = above(theirs, one, two), above(ours, one, two) * (1 if board["higher_is_better"] else -1)
        if not there or not own:
            open_ += 1
        else:
            (same if there == own else other).append(f"{one} > {two}" if there > 0 else f"{two} > {one}")
    told = f" ({', '.join(other)})" if other else ""
    means = ", ".join(f"{name} {ours[name].shown(brief=True)}" for name in sorted(shared, key=lambda n: ours[n].value))
    all_pairs = len(same) + len(other) + open_
    return (
        f"- {board['name']}, {board['metric']} ({means}): of {all_pairs} pairs of methods {len(same)} in PEFT's order; "
        f"{len(other)} in the other{told}; {open_} undecided (here or there the intervals overlap, or are unknown)."
    )


def above(scores: Mapping[str, Score], one: str, two: str) -> int:
    """1 where the first has the higher value, -1 the second, 0 where their intervals overlap or are unknown."""
    first, second = scores[one], scores[two]
    if None in (first.low, first.high, second.low, second.high):
        return 0
    return int(first.low > second.high) - int(second.low > first.high)  # type: ignore[operator]


def tables() -> list[Table]:
    """The table of docs/methods.md."""
    found = json.loads(OUT.read_text(encoding="utf-8"))
    made = "\n".join(table(found, json.loads(evidence.OUT.read_text(encoding="utf-8"))))
    return [Table(DOCS, COMMAND, made, (evidence.HERE / "results.jsonl", ONE_RATE), END)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", nargs="?", type=Path, help="a clone of huggingface/peft")
    if (clone := parser.parse_args().clone) is not None:
        OUT.write_text(text(read(clone)), encoding="utf-8")
    put(tables())


if __name__ == "__main__":
    main()
