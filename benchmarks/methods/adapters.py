"""AdapterDrop and AdapterFusion on the embedded base and reviews: what their papers say, measured again.

    python -m benchmarks.methods.adapters time      # of a step and an answer without the lowest n adapters
    python -m benchmarks.methods.adapters drop      # held-out loss without them
    python -m benchmarks.methods.adapters fusion    # held-out loss with little data, alone and by fusion

A task is to continue the reviews of a language, or of a language and domain; its loss is in nats per token.
time and drop (arXiv 2010.11918, sections 3 and 4): a step and an answer get faster with each layer left out, and a few
cost little; an adapter trained with all layers falls apart when they are left out for use, a robust one does not.
fusion (arXiv 2005.00247, section 5): with little data for a task, fused adapters of others beat its own adapter.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, quantiles, stdev
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from luthier.builtin import DATA
from luthier.core.files import write_jsonl
from luthier.methods.base import METHODS
from luthier.models.load import load_model, load_tokenizer, locate
from luthier.models.settings import ModelConfig
from luthier.pipeline.evaluate import evaluate
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig

ROUNDS = 15
"""A ratio of times is the median of so many turns, in each of which every setting comes once."""
ROW, ROWS, SIZE = 64, 8, 192
"""Tokens of a row, rows of a step, and width of the bottlenecks, where time is measured."""
DROPPED = (0, 1, 3, 5)
"""Lowest layers of the base's six that are left out."""
LANGUAGES, DOMAINS = ("en", "zh"), ("film", "product")
FEW = 32
"""Rows of a target task."""
ALONE, FUSED = ("method=pfeiffer", "train.lr=1e-3"), ("method=fusion", "train.lr=3e-4")
"""Rates that were best of 3e-4, 1e-3 and 3e-3 with 32 English film reviews that no seed below uses."""


def write_rows(folder: Path, language: str, domain: str = "") -> Path:
    """Training rows of a task in train.jsonl of the folder that is returned, held-out rows in heldout.jsonl."""
    made = folder / f"{language}{domain}"
    made.mkdir()
    for split in ("train", "heldout"):
        lines = (DATA / "reviews" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row["language"] == language]
        write_jsonl(made / f"{split}.jsonl", [{"text": row["text"]} for row in rows if domain in ("", row["domain"])])
    return made


def run(made: Path, *own: str, task: Path, epochs: int, before: bool = False) -> dict[str, Any]:
    """Train in `made` on train.jsonl of `task`, for a fixed number of steps; the result.

    Nothing is chosen by the held-out rows.
    """
    common = ["model=builtin", f"data={task / 'train.jsonl'}", f"data.validation={task / 'heldout.jsonl'}"]
    common += ["task=complete", f"train.epochs={epochs}", "train.batch_size=8", "train.precision=fp32", f"run={made}"]
    common += [f"evaluate.before={str(before).lower()}", "evaluate.forgetting=false", "train.keep_best=false"]
    return train(RunConfig.load(None, [*common, *own]))


def score(result: dict[str, Any], of: str = "tuned") -> float:
    """Held-out loss."""
    return float(result[of]["loss"]["value"])


def times() -> None:
    """Processor time of a training step, and of a forward pass for use, as a ratio to nothing left out."""
    config = ModelConfig(path="builtin")
    source = locate(config)
    models, ids = {}, torch.randint(5, 300, (ROWS, ROW), generator=torch.Generator().manual_seed(0))
    for number in DROPPED:
        base = load_model(config, source, labels=None, tokenizer=load_tokenizer(config, source))
        models[number] = METHODS.parse({"name": "houlsby", "size": SIZE, "drop": number}).attach(base, steps=1)
    turns: dict[int, list[tuple[float, float]]] = {number: [] for number in DROPPED}
    for _ in range(ROUNDS):
        for number, model in models.items():
            model.train()
            began = time.process_time()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            trained = time.process_time()
            model.eval()
            with torch.inference_mode():
                model(input_ids=ids, use_cache=False)
            turns[number].append((trained - began, time.process_time() - trained))
            model.zero_grad()
    print("| left out | training step | forward pass |")
    print("|---|---|---|")
    for number, each in turns.items():
        ratios = [[own[i] / other[i] for own, other in zip(each, turns[0], strict=True)] for i in range(2)]
        cells = [f"{middle:.2f} ({low:.2f} to {high:.2f})" for low, middle, high in map(quantiles, ratios)]
        print(f"| {number} | {' | '.join(cells)} |")


def drop(seeds: Sequence[int], folder: Path) -> None:
    """Held-out loss of adapters without the lowest n: trained so, robust, and left out afterwards."""
    task = write_rows(folder, "en")
    losses: dict[str, dict[int, list[float]]] = {
        name: {n: [] for n in DROPPED} for name in ("specialized", "robust", "standard")
    }
    base = 0.0
    for seed in seeds:
        own = [f"seed={seed}", "method=pfeiffer", "train.lr=2e-3"]
        for name, robust in (("robust", ["method.drop=5", "method.drop_each_step=true"]), ("standard", [])):
            made = folder / f"{name}-{seed}"
            result = run(made, *own, *robust, task=task, epochs=3, before=not base)
            base = base or score(result, "base")
            for n in DROPPED:
                losses[name][n].append(score(evaluate(made, drop_layers=n) if n else result))
        losses["specialized"][0].append(losses["standard"][0][-1])
        for n in DROPPED[1:]:
            result = run(folder / f"{n}-{seed}", *own, f"method.drop={n}", task=task, epochs=3)
            losses["specialized"][n].append(score(result))
    print(f"held-out loss, mean over {len(seeds)} seeds; base {base:.3f}")
    print("| left out | trained without | robust | left out for use only |")
    print("|---|---|---|---|")
    for n in DROPPED:
        cells = [shown(each[n]) for each in losses.values()]
        print(f"| {n} | {' | '.join(cells)} |")


def fusion(seeds: Sequence[int], folder: Path) -> None:
    """Held-out loss on each task with little data of it: its own adapter, the others fused, those and its own."""
    tasks = [write_rows(folder, language, domain) for language in LANGUAGES for domain in DOMAINS]
    whole, base, ceiling = {}, [], []
    for task in tasks:
        whole[task] = folder / f"whole-{task.name}"
        result = run(whole[task], *ALONE, task=task, epochs=5, before=True)
        base.append(score(result, "base"))
        ceiling.append(score(result))
    print("held-out loss by task, and mean")
    print("| | " + " | ".join(task.name for task in tasks) + " | mean |")
    print("|---|" + "---|" * (len(tasks) + 1))
    table = {"base": [[each] for each in base]}
    table |= {
        name: [[] for _ in tasks] for name in ("own adapter", "the other three, fused", "those and the own, fused")
    }
    table["adapter on all of its rows"] = [[each] for each in ceiling]
    for seed in seeds:
        for number, task in enumerate(tasks):
            few = folder / f"few-{seed}-{task.name}"
            rows = (task / "train.jsonl").read_text(encoding="utf-8").splitlines()
            few.mkdir()
            few_rows = [json.loads(row) for row in rows[seed * FEW : (seed + 1) * FEW]]
            write_jsonl(few / "train.jsonl", few_rows)
            shutil.copy(task / "heldout.jsonl", few)
            others = [str(whole[other]) for other in tasks if other != task]
            arms = {
                "own adapter": ALONE,
                "the other three, fused": (*FUSED, f"method.adapters={','.join(others)}"),
                "those and the own, fused": (*FUSED, f"method.adapters={','.join([*others, f'{few}/own adapter'])}"),
            }
            for name, own in arms.items():
                table[name][number].append(score(run(few / name, *own, f"seed={seed}", task=few, epochs=10)))
    for name, by_task in table.items():
        means = [mean(values) for values in zip(*by_task, strict=True)]
        print(f"| {name} | {' | '.join(shown(values) for values in [*by_task, means])} |")


def shown(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def main() -> None:
    """Run one of the three and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "drop", "fusion"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    if given.what == "time":
        times()
        return
    with tempfile.TemporaryDirectory() as folder:
        {"drop": drop, "fusion": fusion}[given.what](given.seeds, Path(folder))


if __name__ == "__main__":
    main()
