"""Checkpoints that are whole or not there: weights in the method's own format, states in safetensors and in JSON."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from luthier.core.errors import InputError
from luthier.core.files import fault, staged
from luthier.core.strict_json import to_json

Advanced: TypeAlias = tuple[Optimizer, LRScheduler, Any]
"""What steps advance beside the weights: the optimizer, its schedule, and the scaler of the loss (fp16) or None."""
RandomState: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]
"""What torch (on the CPU and each GPU), Python and NumPy will draw next: tensors, and what JSON holds."""


def newest(folder: Path, run: str = "") -> tuple[Path | None, list[str]]:
    """(newest whole checkpoint or None, what was found broken and put aside)."""
    broken: list[str] = []
    for checkpoint in reversed(_found(folder)):
        what = fault(checkpoint, run=run)
        if not what:
            return checkpoint, broken
        aside = checkpoint.with_name(checkpoint.name + ".corrupt")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        broken.append(f"{checkpoint} is damaged ({what}) and was put aside as {aside.name}")
    return None, broken


def rotate(folder: Path, keep: int, best: str | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one; by rename first, so no half remains in sight."""
    # A checkpoint with a file missing or cut counts for nothing. The one just written was hashed from the disk.
    whole = [checkpoint for checkpoint in _found(folder) if not fault(checkpoint, hashes=False)]
    for checkpoint in whole[:-keep]:
        if checkpoint.name != best:
            trash = checkpoint.with_name(f".trash-{checkpoint.name}")
            shutil.rmtree(trash, ignore_errors=True)
            shutil.rmtree(checkpoint.rename(trash), ignore_errors=True)


def _found(folder: Path) -> list[Path]:
    """Checkpoints by step, the last one last."""
    named = {int(found[1]): path for path in folder.glob("step-*") if (found := re.fullmatch(r"step-(\d+)", path.name))}
    return [named[step] for step in sorted(named)]


def write_checkpoint(
    target: Path, weights: Callable[[Path], None], advanced: Advanced, state: dict[str, Any], run: str = ""
) -> None:
    """Write one checkpoint of `run`; `weights` writes the method's files. Raises NoSpace, with nothing half-written."""
    optimizer, schedule, scaler = advanced
    with staged(target, run, state.get("step")) as folder:
        weights(folder / "weights")
        tensors, numbers = _flatten(optimizer.state_dict())
        rng_tensors, rng = random_state()
        tensors |= rng_tensors
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "state.safetensors")
        schedule_state = {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"}
        scale = scaler.state_dict() if scaler is not None else None
        state = {**state, "optimizer": numbers, "schedule": schedule_state, "scaler": scale, "rng": rng}
        (folder / "state.json").write_text(to_json({**state, "tensors": sorted(tensors)}))


def read_checkpoint(checkpoint: Path, restore: Callable[[Path], None], advanced: Advanced) -> dict[str, Any]:
    """Put a checkpoint back, random states last; returns the `state` given to `write_checkpoint`."""
    optimizer, schedule, scaler = advanced
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    tensors = load_file(checkpoint / "state.safetensors")
    if odd := sorted(set(tensors) ^ set(state.pop("tensors"))):  # torch would silently start a missing one from zero
        raise InputError(f"{checkpoint}: {len(odd)} tensors of state.safetensors do not match, among them {odd[0]}")
    restore(checkpoint / "weights")
    numbers = state.pop("optimizer")
    own: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in numbers["state"].items()}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            own.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": own, "param_groups": numbers["groups"]})
    schedule.load_state_dict({**state.pop("schedule"), "lr_lambdas": [None] * len(optimizer.param_groups)})
    if (scale := state.pop("scaler")) and scaler is not None:
        scaler.load_state_dict(scale)
    put_back((tensors, state.pop("rng")))
    return state


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimizer state as tensors by name and the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {"groups": state["param_groups"], "state": {}}
    seen: set[int] = set()
    for index, values in state["state"].items():
        inner = {k: v for value in values.values() if isinstance(value, dict) for k, v in value.items()}
        for key, value in {**values, **inner}.items():
            if isinstance(value, dict):
                continue  # bitsandbytes wraps its tensors once more; it reads them without as well
            if isinstance(value, Tensor):
                shared = value.data_ptr() in seen  # bitsandbytes' tables serve all parameters; a file has each apart
                tensors[f"optimizer.{index}.{key}"] = value.detach().clone() if shared else value.detach()
                seen.add(value.data_ptr())
            else:
                numbers["state"].setdefault(str(index), {})[key] = value
    return tensors, numbers


def random_state() -> RandomState:
    """The states of all generators as they are."""
    tensors = {"rng.torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        tensors |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, inner, gauss = random.getstate()
    kind, keys, place, has_gauss, kept = np.random.get_state(legacy=True)
    numpy = [kind, np.asarray(keys).tolist(), place, has_gauss, kept]
    return tensors, {"python": [version, list(inner), gauss], "numpy": numpy}


def put_back(state: RandomState) -> None:
    """Let every generator draw from `state` on. InputError where the number of GPUs differs."""
    tensors, numbers = state
    cuda = [key for key in tensors if key.startswith("rng.cuda.")]
    if cuda and torch.cuda.is_available():
        if len(cuda) != torch.cuda.device_count():
            message = f"the run was started with {len(cuda)} GPUs, here are {torch.cuda.device_count()}"
            raise InputError(message, fix="CUDA_VISIBLE_DEVICES as at the start, or run=ANOTHER_DIR")
        torch.cuda.set_rng_state_all([tensors[f"rng.cuda.{i}"] for i in range(len(cuda))])
    version, inner, gauss = numbers["python"]
    random.setstate((version, tuple(inner), gauss))
    kind, keys, place, has_gauss, kept = numbers["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, has_gauss, kept))
    torch.set_rng_state(tensors["rng.torch"])


def seed(number: int) -> None:
    """Seed every generator: Python, NumPy and torch on each device."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)
