"""The learning rate of a classifier's head, and methods that stay at one label: one line of JSON per run.

    python -m benchmarks.methods.heads clinc150 --arms lora houlsby
    python -m benchmarks.methods.heads clinc150 --rows 2500 --head-lr 0.0005 0.05
    python -m benchmarks.methods.heads clinc150 --base FOLDER_OR_GGUF
    python -m benchmarks.methods.heads clinc150 --frozen --rows 3000 --head-lr 0.01 0.1
    python -m benchmarks.methods.heads reviews --base builtin --arms pfeiffer --lr 5e-4
    python -m benchmarks.methods.heads --table

Results go to heads.jsonl beside this file; a run that stands there is not repeated. All are judged on rows held out of
the training rows, never on those that benchmarks.methods.table is made from. Without --head-lr a run has the default. --frozen trains a head alone on the features of the base as it is.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch

import luthier
from benchmarks.methods.run import ARMS, SHARED, encoder, keep, read, trained, value
from luthier.data.prepared import Rows
from luthier.models.targets import in_head
from luthier.pipeline import train as luthier_run
from luthier.recipe.config import RunConfig
from luthier.training.settings import TrainConfig
from luthier.training.step import build_schedule

FILE = Path(__file__).resolve().parent / "heads.jsonl"
TASKS: dict[str, tuple[str, str, int, float, int]] = {
    "clinc150": ("clinc150/train.jsonl", "classify", 1000, 3, 16),
    "sst2": ("sst2/train.jsonl", "classify", 800, 2, 16),
    "cola": ("glue/cola/train.jsonl", "classify", 2000, 2, 16),
    "sts-b": ("glue/sts-b/train.jsonl", "regress", 800, 2, 16),
    "reviews": ("builtin:reviews", "chat", 1074, 3, 16),
}
"""Name -> data, task, rows to train on at most (a share of all, at most 500, is held out), epochs, rows of a step."""


def recipe(asked: dict[str, Any], path: str, folder: Path) -> dict[str, Any]:
    """The run that is asked for, on the base at `path`, as the recipe a user would write."""
    data, kind, _, epochs, batch = TASKS[asked["task"]]
    chat = kind == "chat"
    method: dict[str, Any] = {"name": asked["arm"], **ARMS.get(asked["arm"], {})}
    if asked["arm"] == "bitfit" and path != "encoder":
        method["missing"] = "add"
    return {
        "run": str(folder),
        "model": {"path": encoder() if path == "encoder" else path},
        "data": {
            "path": data if chat else str(SHARED / data),
            "limit": asked["rows"],
            "validation": 0.25 if chat else 0.2,
            "validation_limit": 500,
        },
        "task": kind,
        "method": method,
        "train": {
            "epochs": epochs,
            "batch_size": batch,
            "micro_batch": batch,
            "lr": asked["asked_lr"],
            "head_lr": asked["asked_head_lr"],
            "precision": "fp32",
            "keep_best": False,
            "warmup": 0.06 if chat else 0.03,
        },
        "evaluate": {"before": False, "batch_size": 64, "forgetting": False, "generate": 0},
        "seed": asked["seed"],
    }


def measure(asked: dict[str, Any], path: str) -> dict[str, Any]:
    """One run; its line of results."""

    def facts(result: dict[str, Any]) -> dict[str, Any]:
        same = {key: result.get(key) for key in ("lr", "head_lr", "steps", "train_rows", "tokens_per_second")}
        return same | {name: value(result, name) for name in ("loss", "accuracy", "mcc", "spearman")}

    line = asked | trained(lambda folder: recipe(asked, path, folder), facts)
    return line | {"luthier": luthier.__version__, "torch": torch.__version__}


def frozen(asked: dict[str, Any], path: str, rates: list[float], steps: int = 200) -> None:
    """Print the held-out loss of a head alone, on the features of the base as it is, at each rate (Adam, 32 rows)."""
    made = recipe(asked, path, Path("unused"))
    made["data"] |= {"validation": 0.25, "validation_limit": None}
    config = RunConfig.model_validate(made)
    loaded, trainer = luthier_run.before_first_step(config)
    model, read = loaded.model.eval(), []
    head = next(layer for name, layer in model.named_modules() if in_head(name))
    head.register_forward_hook(lambda layer, inputs, output: read.append(inputs[0]))

    @torch.no_grad()
    def features(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        read.clear()
        batches = [loaded.data.task.collate([rows[i]], trainer.pad_id) for i in range(len(rows))]
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        last = [each[:, -1] if each.ndim == 3 else each for each in read]
        return torch.cat(last).float(), torch.cat([batch["labels"][:, 0] for batch in batches])

    (x, y), (held_x, held_y) = features(loaded.data.rows), features(loaded.data.validation_rows)
    print(f"sum of |features|: {float(x.abs().sum(-1).mean()):.3g}, default rate {trainer.config.head_lr:g}")
    for rate in rates:
        torch.manual_seed(0)
        weight = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
        torch.nn.init.normal_(weight.weight, std=0.02)
        optimizer = torch.optim.AdamW(weight.parameters(), lr=rate, weight_decay=0.0)
        schedule = build_schedule(optimizer, TrainConfig(warmup=0.06), steps)
        for _ in range(steps):
            chosen = torch.randint(0, len(x), (32,))
            torch.nn.functional.cross_entropy(weight(x[chosen]), y[chosen]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        print(f"{rate:g}: {float(torch.nn.functional.cross_entropy(weight(held_x), held_y)):.3f}")


def table() -> None:
    """Print heads.jsonl as a table."""
    print("| task | base | rows | method | its rate | head's rate | held-out loss | score |\n" + "|---" * 8 + "|")
    for line in sorted(read(FILE), key=lambda each: [str(each[key]) for key in ("task", "base", "arm", "rows")]):
        score = line[{"cola": "mcc", "sts-b": "spearman"}.get(line["task"], "accuracy")]
        cells = (line[key] for key in ("task", "base", "rows", "arm", "lr", "head_lr"))
        print("|", " | ".join(map(str, cells)), f"| {line['loss']:.3f} | {100 * score:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=["lora"])
    parser.add_argument("--base", default="encoder")
    parser.add_argument("--rows", type=int, help="instead of the task's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--lr", type=float)
    parser.add_argument("--head-lr", nargs="+", type=float, default=[None])
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--frozen", action="store_true", help="a head alone, on frozen features")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        table()
    for seed, task, arm, head_lr in product(given.seeds, given.tasks, given.arms, given.head_lr):
        asked = {"task": task, "arm": arm, "base": Path(given.base).name, "rows": given.rows or TASKS[task][2]}
        asked |= {"seed": seed, "asked_lr": given.lr, "asked_head_lr": head_lr}
        if given.frozen:
            frozen(asked, given.base, given.head_lr)
            break
        if not any(asked.items() <= line.items() for line in read(given.out)):
            keep(given.out, measure(asked, given.base))


if __name__ == "__main__":
    main()
