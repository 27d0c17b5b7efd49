"""AdapterDrop and AdapterFusion on the embedded base and reviews: what their papers say, measured again.

    python -m benchmarks.methods.adapters drop      # time and held-out loss without the lowest n adapters
    python -m benchmarks.methods.adapters fusion    # accuracy with little data, alone and by fusion

drop (arXiv 2010.11918, sections 3 and 4): a step and an answer get faster with each layer left out, and lose little; an
adapter that was trained with all layers falls apart when they are left out for use, a robust one does not.
fusion (arXiv 2005.00247, section 5): with little data for a task, fused adapters of others beat its own adapter.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median, stdev
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

ROUNDS = 9
"""A ratio of times is the median of so many turns, in each of which every setting comes once."""
ROW, ROWS = 128, 8
"""Tokens of a row, and rows in a step, where time is measured."""
TASKS = (("film", "zh"), ("film", "en"), ("product", "zh"), ("product", "en"))
"""Domain and language of the reviews: each is a task."""
FEW = 16
"""Rows of the target task."""


def run(folder: Path, *own: str, data: str = "builtin:reviews", epochs: int = 3) -> dict[str, Any]:
    """Train in `folder`; the result."""
    common = ["model=builtin", f"data={data}", "task=classify", f"train.epochs={epochs}", "train.batch_size=16"]
    common += ["evaluate.before=false", "train.precision=fp32", f"run={folder}"]
    return train(RunConfig.load(None, [*common, *own]))


def score(result: dict[str, Any]) -> float:
    """Held-out accuracy."""
    return float(result["tuned"]["accuracy"]["value"])


def seconds(dropped: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Ratio of time to nothing left out: of a training step, and of a forward pass for use."""
    config = ModelConfig(path="builtin")
    source = locate(config)
    models, ids = {}, torch.randint(5, 300, (ROWS, ROW), generator=torch.Generator().manual_seed(0))
    for number in dropped:
        base = load_model(config, source, labels=None, tokenizer=load_tokenizer(config, source))
        models[number] = METHODS.parse({"name": "pfeiffer", "drop": number}).attach(base, steps=1)
    turns: dict[int, list[tuple[float, float]]] = {number: [] for number in dropped}
    for _ in range(ROUNDS):
        for number, model in models.items():
            model.train()
            began = time.perf_counter()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            trained = time.perf_counter()
            model.eval()
            with torch.inference_mode():
                model(input_ids=ids, use_cache=False)
            turns[number].append((trained - began, time.perf_counter() - trained))
            model.zero_grad()
    first = turns[dropped[0]]
    return {
        number: (
            median(own[0] / other[0] for own, other in zip(each, first, strict=True)),
            median(own[1] / other[1] for own, other in zip(each, first, strict=True)),
        )
        for number, each in turns.items()
    }


def drop(seeds: Sequence[int], folder: Path) -> None:
    """Time, and held-out accuracy of adapters without the lowest n: trained so, robust, and left out afterwards."""
    dropped = range(6)
    times = seconds(dropped)
    scores: dict[str, dict[int, list[float]]] = {
        name: {n: [] for n in dropped} for name in ("specialized", "robust", "standard")
    }
    for seed in seeds:
        for name, own in (("robust", ["method.drop=5", "method.drop_each_step=true"]), ("standard", [])):
            made = folder / f"{name}-{seed}"
            run(made, "method=pfeiffer", f"seed={seed}", *own)
            for n in dropped:
                scores[name][n].append(score(evaluate(made, drop_layers=n)))
        for n in dropped:
            own = scores["standard"][0][-1:] if n == 0 else []
            trained = own or [score(run(folder / f"{n}-{seed}", "method=pfeiffer", f"seed={seed}", f"method.drop={n}"))]
            scores["specialized"][n] += trained
    print("| left out | training step | forward pass | trained without | robust | left out for use only |")
    print("|---|---|---|---|---|---|")
    for n in dropped:
        cells = [shown(scores[name][n]) for name in scores]
        print(f"| {n} | {times[n][0]:.2f} | {times[n][1]:.2f} | {' | '.join(cells)} |")


def rows_of(split: str, domain: str, language: str) -> list[dict[str, Any]]:
    """Reviews of one task."""
    lines = (DATA / "reviews" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    found = [row for row in rows if (row["domain"], row["language"]) == (domain, language)]
    return [{"text": row["text"], "label": row["label"]} for row in found]


def fusion(seeds: Sequence[int], folder: Path) -> None:
    """Held-out accuracy on each task with little data of it: its own adapter, the others fused, the better of those."""
    totals: dict[str, list[float]] = {"own adapter": [], "fusion of the other three": [], "fusion with the own": []}
    for seed in seeds:
        whole = {}
        for task in TASKS:
            made = folder / f"{'-'.join(task)}-{seed}"
            files = [folder / f"{'-'.join(task)}.{split}.jsonl" for split in ("train", "heldout")]
            for file, split in zip(files, ("train", "heldout"), strict=True):
                write_jsonl(file, rows_of(split, *task))
            whole[task] = str(made)
            run(made, "method=pfeiffer", f"seed={seed}", f"data.validation={files[1]}", data=str(files[0]), epochs=8)
        for task in TASKS:
            few, held = folder / f"few-{seed}-{'-'.join(task)}.jsonl", folder / f"{'-'.join(task)}.heldout.jsonl"
            write_jsonl(few, rows_of("train", *task)[seed * FEW : (seed + 1) * FEW])
            common = [f"seed={seed}", f"data.validation={held}"]
            own, others = f"{few}.own", [whole[other] for other in TASKS if other != task]
            known = {"data": str(few), "epochs": 30}
            totals["own adapter"].append(score(run(Path(own), "method=pfeiffer", *common, **known)))
            for name, fused in (("fusion of the other three", others), ("fusion with the own", [*others, own])):
                adapters = f"method.adapters={','.join(fused)}"
                result = run(Path(f"{few}.{len(fused)}"), "method=fusion", adapters, *common, **known)
                totals[name].append(score(result))
    print(f"held-out accuracy with {FEW} rows, mean over {len(TASKS)} tasks and {len(seeds)} seeds")
    for name, values in totals.items():
        by_seed = [mean(values[i : i + len(TASKS)]) for i in range(0, len(values), len(TASKS))]
        print(f"| {name} | {shown(by_seed)} |")


def shown(values: Sequence[float]) -> str:
    """Mean and standard deviation, in percent."""
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}" if len(values) > 1 else f"{100 * values[0]:.1f}"


def main() -> None:
    """Run one of the two and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("drop", "fusion"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"drop": drop, "fusion": fusion}[given.what](given.seeds, Path(folder))


if __name__ == "__main__":
    main()
