"""The learning rate of a classifier's head, and bases that stay at the majority class: one line of JSON per run.

    python -m benchmarks.methods.heads clinc150 --arms lora houlsby --head-lr 0.0005 0.05
    python -m benchmarks.methods.heads clinc150 --base FOLDER_OR_GGUF
    python -m benchmarks.methods.heads --table

Results go to heads.jsonl beside this file; a run that stands there is not repeated. All are judged on rows held out of
the training rows, never on those that benchmarks.methods.table is made from. Without --head-lr a run has the default.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

import luthier
from benchmarks.methods.run import ARMS, SHARED, encoder, keep, read, value
from luthier.core.errors import LuthierError, Stopped
from luthier.pipeline import train as luthier_run
from luthier.recipe.config import RunConfig

FILE = Path(__file__).resolve().parent / "heads.jsonl"
TASKS: dict[str, tuple[str, str, int, float, int]] = {
    "clinc150": ("clinc150/train.jsonl", "classify", 1000, 3, 16),
    "sst2": ("sst2/train.jsonl", "classify", 800, 2, 16),
    "cola": ("glue/cola/train.jsonl", "classify", 2000, 2, 16),
    "sts-b": ("glue/sts-b/train.jsonl", "regress", 800, 2, 16),
}
"""Name -> data, task, rows (a fifth of them, at most 300, is held out), epochs, rows of a step."""


def measure(task: str, arm: str, base: str, seed: int, lr: float | None, head_lr: float | None) -> dict[str, Any]:
    """One run; its line of results."""
    data, kind, rows, epochs, batch = TASKS[task]
    place = Path(tempfile.mkdtemp(prefix="luthier-heads-"))
    method: dict[str, Any] = {"name": arm, **ARMS.get(arm, {})}
    if arm == "bitfit" and base != "encoder":
        method["missing"] = "add"
    recipe = {
        "run": str(place / "run"),
        "model": {"path": encoder() if base == "encoder" else base},
        "data": {"path": str(SHARED / data), "limit": rows, "validation": 0.2, "validation_limit": 300},
        "task": kind,
        "method": method,
        "train": {
            "epochs": epochs,
            "batch_size": batch,
            "micro_batch": batch,
            "lr": lr,
            "head_lr": head_lr,
            "precision": "fp32",
            "keep_best": False,
            "warmup": 0.06,
        },
        "evaluate": {"before": False, "batch_size": 64, "forgetting": False},
        "seed": seed,
    }
    line: dict[str, Any] = {"task": task, "arm": arm, "base": Path(base).name, "seed": seed}
    line |= {"asked_lr": lr, "asked_head_lr": head_lr}
    try:
        result = luthier_run.train(RunConfig.model_validate(recipe))
        line |= {key: result.get(key) for key in ("lr", "head_lr", "steps", "train_rows", "tokens_per_second")}
        line |= {name: value(result, name) for name in ("loss", "accuracy", "mcc", "spearman")}
    except Stopped:  # no result: the next start reruns it
        raise
    except LuthierError as error:
        line["refused"] = str(error)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return line | {"luthier": luthier.__version__, "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=["lora"])
    parser.add_argument("--base", default="encoder")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--lr", type=float)
    parser.add_argument("--head-lr", nargs="+", type=float, default=[None])
    parser.add_argument("--out", type=Path, default=FILE)
    given = parser.parse_args()
    for seed in given.seeds:
        for task in given.tasks:
            for arm in given.arms:
                for head_lr in given.head_lr:
                    key = {"task": task, "arm": arm, "base": Path(given.base).name, "seed": seed}
                    key |= {"asked_lr": given.lr, "asked_head_lr": head_lr}
                    if not any(key.items() <= line.items() for line in read(given.out)):
                        keep(given.out, measure(task, arm, given.base, seed, given.lr, head_lr))


if __name__ == "__main__":
    main()
