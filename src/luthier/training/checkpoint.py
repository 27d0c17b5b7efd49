"""Checkpoints that are whole or not there: staged, hashed, renamed; no pickle in them.

A checkpoint is written to `.staging-*`, every file is synced to the disk, `manifest.json` gets size and
SHA-256 of each, and only then the folder is renamed to its name. A reader takes the newest folder whose
hashes hold, and puts broken ones aside as `*.corrupt`. Weights lie in the method's own format, so every
checkpoint is usable with PEFT or transformers as it stands; optimizer and random states are tensors in
safetensors and numbers in JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import InputError, NoSpace
from luthier.training.space import is_full

MANIFEST = "manifest.json"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` as a whole at the end, or leaves no trace."""
    staging = target.parent / f".staging-{target.name}-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        listing = {
            str(path.relative_to(staging)): {"bytes": path.stat().st_size, "sha256": _hash(path)} for path in files
        }
        (staging / MANIFEST).write_text(json.dumps({"files": listing}, indent=1))
        for path in [*files, staging / MANIFEST]:
            _sync(path)
        if target.exists():  # the same step again, after a resume from before it
            shutil.rmtree(target)
        staging.rename(target)
        _sync(target.parent)
    except Exception as error:
        shutil.rmtree(staging, ignore_errors=True)
        if is_full(error):
            free = shutil.disk_usage(target.parent).free
            raise NoSpace(
                f"no space left on the disk for {target} ({free / 2**20:.0f} MiB free); what was saved before is whole",
                mend="free some space and give the same command again: the run goes on from its last checkpoint",
            ) from error
        raise


def valid(folder: Path) -> bool:
    """Are all files of the manifest there, with their hashes?"""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return all(_hash(folder / name) == entry["sha256"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def newest(folder: Path) -> tuple[Path | None, list[Path]]:
    """(newest whole checkpoint or None, broken ones that were put aside)."""
    broken: list[Path] = []
    for checkpoint in sorted(folder.glob("step-*[0-9]"), reverse=True):
        if valid(checkpoint):
            return checkpoint, broken
        aside = checkpoint.with_name(checkpoint.name + ".corrupt")
        shutil.rmtree(aside, ignore_errors=True)
        broken.append(checkpoint.rename(aside))
    return None, broken


def rotate(folder: Path, keep: int, best: str | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one; by rename first, so no half remains in sight."""
    found = sorted(folder.glob("step-*[0-9]"))
    for checkpoint in found[:-keep]:
        if checkpoint.name != best:
            trash = checkpoint.rename(checkpoint.with_name(f".trash-{checkpoint.name}"))
            shutil.rmtree(trash, ignore_errors=True)


def write(
    target: Path, weights: Callable[[Path], None], optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler, scaler: Any, state: dict[str, Any],
) -> None:  # fmt: skip
    """Write one checkpoint; `weights` writes the method's files. Raises NoSpace, with nothing half-written."""
    with staged(target) as folder:
        weights(folder / "weights")
        tensors, numbers = _flatten(optimizer.state_dict())
        tensors |= {"rng.torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors |= {f"rng.cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
        version, inner, gauss = random.getstate()
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "state.safetensors")
        (folder / "state.json").write_text(
            json.dumps({
                **state,
                "optimizer": numbers,
                "schedule": {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"},
                "scaler": scaler.state_dict() if scaler is not None else None,
                "rng": [version, list(inner), gauss],
            })
        )  # fmt: skip


def read(
    checkpoint: Path, restore: Callable[[Path], None], optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler, scaler: Any,
) -> dict[str, Any]:  # fmt: skip
    """Put a checkpoint back, random states last; returns the state given to `write`."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    tensors = load_file(checkpoint / "state.safetensors")
    restore(checkpoint / "weights")
    optimizer.load_state_dict(_unflatten(tensors, state["optimizer"]))
    schedule.load_state_dict({**state["schedule"], "lr_lambdas": [None] * len(optimizer.param_groups)})
    if scaler is not None and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    cuda = sorted((key for key in tensors if key.startswith("rng.cuda.")), key=lambda key: int(key.rpartition(".")[2]))
    if cuda and torch.cuda.is_available():
        if len(cuda) != torch.cuda.device_count():
            raise InputError(f"{checkpoint}: was written with {len(cuda)} GPUs, here are {torch.cuda.device_count()}")
        torch.cuda.set_rng_state_all([tensors[key] for key in cuda])
    version, inner, gauss = state["rng"]
    random.setstate((version, tuple(inner), gauss))
    torch.set_rng_state(tensors["rng.torch"])
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


def _unflatten(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in numbers["state"].items()}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": numbers["groups"]}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
