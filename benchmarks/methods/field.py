"""Every method on a real language model, SmolLM2-135M-Instruct, at the best of its learning rates: a line of JSON per run.

    python -m benchmarks.methods.field sst2 arithmetic                    # what is missing of these columns
    python -m benchmarks.methods.field sst2 --arms lora --seeds 1 --again  # run one cell again, beside what is recorded
    python -m benchmarks.methods.field sst2 --arms lora --seeds 0 --lr 1e-3  # a cell at a rate that the search did not choose

Each method trains on the same rows for the same steps, so on the same tokens. Its learning rate is searched first, by the
loss on rows that are neither trained on nor scored: from the method's own in steps of three in runs half as long, then from
the best of these in runs as long as those of the table, downward, since a longer run may want a lower rate. Lines of the search
go to sweep.jsonl and whole_sweep.jsonl, those of the table to results.jsonl, those at other rates to other_rates.jsonl, all
beside this file; what stands in the first three is not run again.
A second process started beside the first takes other cells, so two cores are busy with two of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.methods.evidence import OTHER_RATES, SWEEP, WHOLE_SWEEP
from benchmarks.methods.run import HERE, METRICS, QUANTIZED, SHARED, best, environment, keep, read, search
from luthier.comparison import runner, workers
from luthier.core.errors import Busy
from luthier.core.events import SILENT, Progress
from luthier.core.files import lock, read_jsonl, write_jsonl
from luthier.pipeline import prepare
from luthier.pipeline import train as luthier_run
from luthier.pipeline.prepare import SharedInputs
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder

RESULTS, BUILD = HERE / "results.jsonl", HERE.parents[1] / "build/benchmarks/methods"

ARMS = (
    *("full", "lora", "qlora", "dora", "adalora", "houlsby", "ia3", "bitfit", "prefix", "prompt"),
    *("p_tuning", "p_tuning_v2", "lora_int8", "rslora", "pissa", "lora_plus", "vera", "pfeiffer"),
    *("parallel_adapter", "scaled_parallel", "mam", "unipelt", "oft", "freeze", "layernorm", "loha", "lokr"),
)
"""The most used first: they are measured first."""


@dataclass(frozen=True)
class Task:
    """Rows to train on, rows to choose a learning rate by, and rows for the score."""

    kind: str
    """Task of the recipe."""
    rows: Callable[[], tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]]
    format: dict[str, Any]
    epochs: float = 1
    evaluate: dict[str, Any] = field(default_factory=dict)


def drawn(train: str, test: str, sizes: tuple[int, int, int]) -> tuple[list[Any], list[Any], list[Any]]:
    """Rows of two files of the shared data, drawn with one seed; the first two sizes come from the first file."""
    draw = random.Random(0)
    learned, scored = (list(read_jsonl(SHARED / name)) for name in (train, test))
    draw.shuffle(learned)
    draw.shuffle(scored)
    return learned[: sizes[0]], learned[sizes[0] : sizes[0] + sizes[1]], scored[: sizes[2]]


def sums() -> tuple[list[Any], list[Any], list[Any]]:
    """Two numbers of up to three digits, added or subtracted; no question appears twice."""
    draw = random.Random(0)
    made: dict[str, str] = {}
    while len(made) < 880:
        a, b, sign = draw.randint(10, 999), draw.randint(10, 999), draw.choice("+-")
        made[f"{a} {sign} {b} ="] = str(a + b if sign == "+" else a - b)
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in made.items()]
    return rows[:480], rows[480:630], rows[630:]


def restaurants() -> tuple[list[Any], list[Any], list[Any]]:
    """E2E NLG: no meaning stands in more than one of the three; those for the score have all their references."""
    rows = [row for name in ("dev", "test") for row in read_jsonl(SHARED / f"e2e_nlg/{name}.jsonl")]
    meanings: dict[str, list[Any]] = {}
    for row in rows:
        meanings.setdefault(row["mr"], []).append(row)
    names = list(meanings)
    random.Random(0).shuffle(names)
    learned = [meanings[name][0] for name in names[80:]]
    return learned[:480], learned[480:600], [row for name in names[:80] for row in meanings[name]]


TASKS = {
    "sst2": Task(
        "chat",
        partial(drawn, "sst2/train.jsonl", "sst2/dev.jsonl", (480, 150, 400)),
        {"name": "classification", "prompt": "{text}", "names": ["negative", "positive"]},
    ),
    "clinc150": Task(
        "classify",
        partial(drawn, "clinc150/train.jsonl", "clinc150/val.jsonl", (1500, 300, 1000)),
        {"name": "classification"},
        2,
    ),
    "e2e": Task(
        "chat",
        restaurants,
        {"name": "prompt_completion", "prompt": "mr", "completion": "ref"},
        1,
        {"generate": 80, "max_new_tokens": 80},
    ),
    "arithmetic": Task("chat", sums, {"name": "prompt_completion"}, 1, {"generate": 250, "max_new_tokens": 8}),
}


def file_of(name: str, side: str) -> Path:
    """One of the three files of a task, made where it is missing."""
    places = {each: BUILD / f"{name}-{each}.jsonl" for each in ("train", "choose", "score")}
    if not all(place.is_file() for place in places.values()):
        BUILD.mkdir(parents=True, exist_ok=True)
        for place, rows in zip(places.values(), TASKS[name].rows(), strict=True):
            write_jsonl(place, rows)
    return places[side]


Length = Literal["half", "whole"]
"""Of a run of the search; None is a run of the table, which is scored on other rows."""


def recipe(name: str, arm: str, seed: int, lr: float | None, sweep: Length | None, folder: str) -> RunConfig:
    """The run as the recipe a user would write."""
    task = TASKS[name]
    method, quantize = QUANTIZED.get(arm, (arm, "none"))
    settings: dict[str, Any] = {"name": method}
    if method == "bitfit":
        settings["missing"] = "add"  # Llama has no biases
    return RunConfig.model_validate(
        {
            "run": folder,
            "model": {"path": "smollm2", "quantize": quantize, "device": "cpu"},
            "data": {
                "path": str(file_of(name, "train")),
                "validation": str(file_of(name, "choose" if sweep else "score")),
                "format": task.format,
            },
            "task": task.kind,
            "method": settings,
            "train": {
                "epochs": task.epochs / 2 if sweep == "half" else task.epochs,
                "batch_size": 16,
                "lr": lr,
                "precision": "fp32",
                "warmup": 0.06,
                "keep_best": False,
                "evaluate_every": 100_000,
                "save_every": 100_000,
            },
            "evaluate": {
                "batch_size": 64,
                "samples": 0,
                "before": sweep is None and task.kind == "chat",
                "forgetting": sweep is None,
            }
            | (task.evaluate | ({"generate": 0} if sweep else {})),
            "seed": seed,
        }
    )


@lru_cache(maxsize=1)  # a second base in memory would count as memory of the run
def inputs(name: str, sweep: Length | None) -> SharedInputs:
    """Tokens and base in memory, for all runs of a task; rows are cut alike for every method."""
    config = recipe(name, "lora", 0, None, sweep, "unused")
    data = prepare.prepare_data(config, SILENT)
    tokens = prepare.tokenize(config, data, SILENT, positions=64)
    return runner.shared_inputs(config, tokens, None)


class _Clock(Progress):
    """Processor seconds of the training alone."""

    def __init__(self) -> None:
        self.began = self.seconds = 0.0

    def train_begins(self, start: int, steps: int) -> None:
        self.began = time.process_time()

    def train_ends(self) -> None:
        self.seconds = time.process_time() - self.began


def measure(name: str, arm: str, seed: int, lr: float | None, sweep: Length | None = None) -> dict[str, Any]:
    """One run in a process of its own that shares the base's memory; its line of results."""
    shared = inputs(name, sweep)
    shared.base(recipe(name, "lora", 0, None, sweep, "unused"))  # in memory before the fork
    line: dict[str, Any] = {"task": f"smollm2-{name}", "arm": arm, "seed": seed, "sweep": bool(sweep), "asked_lr": lr}
    with tempfile.TemporaryDirectory(prefix="luthier-methods-") as folder:
        job = partial(_run, recipe(name, arm, seed, lr, sweep, f"{folder}/run"), replace(shared), sweep)
        end = next(iter(workers.run_jobs([job], workers=1, threads=1, fork=True)))
    if end.kind == "stopped":
        raise KeyboardInterrupt
    line |= end.value if end.kind == "done" else {"refused": str(end.value)}
    return line | environment()  # this process has one thread, as the run


def _run(config: RunConfig, shared: SharedInputs, sweep: Length | None, send: workers.Send) -> dict[str, Any]:
    clock, found = _Clock(), {}
    if sweep:
        shared = replace(shared, finished=lambda loaded, run: None)
    began = time.process_time()
    result = luthier_run.train(config, progress=clock, shared=shared)
    run = Path(config.run)
    if (run / "latency.json").is_file():
        speed = json.loads((run / "latency.json").read_text(encoding="utf-8"))
        found["latency"] = {what: one["ratio"] for what, one in speed.items()}
    for side, before in (("base", "base_"), ("tuned", "")):
        for metric in METRICS:
            if metric in result[side]:
                score = result[side][metric]
                found[before + metric] = score["value"]
                found |= {f"{before}{metric}_{end}": score[end] for end in ("low", "high")}
    if not sweep:
        found |= {"right": right([each["tuned"] for each in read_jsonl(RunFolder(run).predictions)])}
    return found | {
        "lr": result["lr"],
        "rows": result["train_rows"],
        "held_out": result["validation_examples"],
        "epochs": result["epochs"],
        "steps": result["steps"],
        "tokens": result["tokens"],
        "trainable": result["trainable"],
        "parameters": result["parameters"],
        "forgetting": result["forgetting"],
        "bytes": result["weights_bytes"],
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "train_seconds": round(clock.seconds, 1),
        "seconds": round(time.process_time() - began, 1),
    }


def right(records: list[dict[str, Any]]) -> dict[str, str]:
    """For each score that is a share of rows, a 1 for each row that counts and a 0 for each that does not, in their order."""
    found = {
        "accuracy": [each["chosen"] == each["label"] for each in records if "chosen" in each],
        "exact_match": [each["exact"] for each in records if "exact" in each],
    }
    return {metric: "".join(str(int(one)) for one in several) for metric, several in found.items() if several}


def rate(name: str, arm: str) -> float | None:
    """The learning rate of the lowest held-out loss; None if the method is refused. Busy if another process searches it."""
    task = f"smollm2-{name}"
    with claimed(name, arm, -1):
        start = best(search(SWEEP, task, arm, lambda lr: measure(name, arm, 0, lr, "half")))
        if start is None:
            return None
        down = (1 / 3,)
        return best(search(WHOLE_SWEEP, task, arm, lambda lr: measure(name, arm, 0, lr, "whole"), start, down))


def claimed(name: str, arm: str, seed: int) -> AbstractContextManager[object]:
    """Keeps other processes from a cell, or from the search of its learning rate (seed -1)."""
    place = BUILD / f"{name}-{arm}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    return lock(place, Busy("another process is at it"))


def cells(names: list[str], arms: list[str], seeds: list[int]) -> Iterator[tuple[str, str, int]]:
    """Searches first (seed -1), then seed after seed, so that each method has one soon."""
    for seed in (-1, *seeds):
        for name in names:
            for arm in arms:
                yield name, arm, seed


def work(names: list[str], arms: list[str], seeds: list[int]) -> bool:
    """Do all that is missing and that no other process does; whether something was left to others."""
    left = False
    for name, arm, seed in cells(names, arms, seeds):
        try:
            if seed < 0:
                rate(name, arm)
                continue
            with claimed(name, arm, seed):
                if not recorded(name, arm, seed):
                    keep(RESULTS, measure(name, arm, seed, rate(name, arm)))
        except Busy:
            left = True
    return left


def recorded(name: str, arm: str, seed: int) -> dict[str, Any] | None:
    """The line of results of a cell, if there is one."""
    wanted = {"task": f"smollm2-{name}", "arm": arm, "seed": seed}
    return next((line for line in read(RESULTS) if wanted.items() <= line.items()), None)


def again(names: list[str], arms: list[str], seeds: list[int]) -> None:
    """Run cells once more, at the recorded learning rate, and print them beside what is recorded."""
    for name, arm, seed in product(names, arms, seeds):
        line = recorded(name, arm, seed)
        if line is None:
            print(f"{name} {arm} seed {seed}: not recorded; without --again it is run")
            continue
        now = measure(name, arm, seed, line.get("lr"))
        for metric in METRICS:
            if line.get(metric) is not None:
                print(f"{name} {arm} seed {seed}: {metric} {now.get(metric):.4f}, recorded {line[metric]:.4f}")
        print(f"  {now['seconds']} processor seconds, recorded {line['seconds']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--lr", type=float)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.lr:
        for name, arm, seed in product(given.tasks, given.arms, given.seeds):
            keep(OTHER_RATES, measure(name, arm, seed, given.lr))
    elif given.again:
        again(given.tasks, given.arms, given.seeds)
    elif work(given.tasks, given.arms, given.seeds):
        print("the rest is being done by another process")


if __name__ == "__main__":
    main()
