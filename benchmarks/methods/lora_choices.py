"""Two choices within LoRA, measured on the embedded base and dialogues: where A and B start, and AdaLoRA's penalty.

    python -m benchmarks.methods.lora_choices starts     # each method.init, at LoRA's learning rate and at a quarter of it
    python -m benchmarks.methods.lora_choices penalty    # AdaLoRA with PEFT's norm, and with the paper's squared norm

Both print the mean training loss of the last ten of 60 steps of 8 rows, for each seed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from luthier.methods.adalora import AdaLoRA
from luthier.methods.base import trainable_state
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig

STARTS = ("default", "eva", "pissa", "olora", "corda", "lora_ga")
RATE = 2e-3


def last_losses(seed: int, *own: str) -> float:
    """Mean training loss of the last ten steps."""
    common = ["model=builtin", "data=builtin:assistant", "train.steps=60", "train.batch_size=8", f"seed={seed}"]
    common += ["train.precision=fp32", "evaluate.before=false", "evaluate.generate=0", "data.validation=none"]
    with tempfile.TemporaryDirectory() as folder:
        train(RunConfig.load(None, [*common, f"run={folder}/run", *own]))
        lines = (Path(folder) / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return mean(found["loss"] for line in lines[-10:] if "loss" in (found := json.loads(line)))


def distances(model: Any) -> torch.Tensor:
    """Frobenius norm of P^T P - I and Q Q^T - I of every layer."""
    weights = [(name, w) for name, w in trainable_state(model).items() if ".lora_A." in name or ".lora_B." in name]
    grams = [w @ w.T if ".lora_A." in name else w.T @ w for name, w in weights]
    return torch.stack([torch.linalg.matrix_norm(gram - torch.eye(len(gram))) for gram in grams])


def show(name: str, values: Sequence[float], more: str = "") -> None:
    print(f"{name:24} {' '.join(f'{value:.2f}' for value in values)}  mean {mean(values):.2f}{more}", flush=True)


def penalty(seeds: Sequence[int]) -> None:
    seen: list[float] = []
    for power, name in ((1, "norm (PEFT)"), (2, "squared (paper, eq. 4)")):

        def added(self: AdaLoRA, model: Any, power: int = power) -> Any:
            found = distances(model)
            seen.append(float(found.detach().mean()))
            return self.orthogonality * (found**power).mean()

        AdaLoRA.penalty = added  # type: ignore[method-assign]
        losses = [last_losses(seed, "method=adalora", "method.orthogonality=0.1") for seed in seeds]
        show(name, losses, f"; norm at the end {seen[-1]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("starts", "penalty"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    if given.what == "penalty":
        penalty(given.seeds)
        return
    for init in STARTS:
        for rate in (RATE, RATE / 4):
            own = ["method=lora", f"method.init={init}", f"train.lr={rate:g}"]
            own += ["method.alpha=16"] if init == "pissa" else []
            show(f"{init} at {rate:g}", [last_losses(seed, *own) for seed in given.seeds])


if __name__ == "__main__":
    main()
