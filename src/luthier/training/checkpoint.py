"""Checkpoints that are whole or not there: weights in the method's own format, states in safetensors and in JSON."""

import json
import random
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from luthier.core.errors import InputError
from luthier.core.files import fault, staged
from luthier.core.ranks import here
from luthier.core.strict_json import to_json
from luthier.models.sharding import divided_as

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
    """Write one checkpoint of `run`; `weights` writes the method's files, and, where weights are divided among the
    ranks, every rank's shards of the optimizer's states (see `write_shards`).

    Raises NoSpace, with nothing half-written.
    """
    optimizer, schedule, scaler = advanced
    with staged(target, run, state.get("step")) as folder:
        weights(folder / "weights")
        tensors, numbers = _flatten(optimizer.state_dict())
        divided = {key: value for key, value in tensors.items() if isinstance(value, DTensor)}
        tensors = {key: value for key, value in tensors.items() if key not in divided}
        numbers["divided"] = {key: str(value.dtype).removeprefix("torch.") for key, value in divided.items()}
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
    then, now = ([len(group["params"]) for group in each] for each in (numbers["groups"], optimizer.param_groups))
    if then != now:  # the same count of parameters may stand in another order
        why = f"{checkpoint}: its optimizer has other groups of parameters than this version of Luthier makes of them"
        raise InputError(why, fix="the version of environment.json, or another run=DIR")
    own: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in numbers["state"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    divided = {
        name: torch.empty_like(parameters[int(name.split(".")[1])], dtype=getattr(torch, dtype), requires_grad=False)
        for name, dtype in numbers.get("divided", {}).items()
    }
    if divided:
        read_shards(checkpoint / "weights", divided)
    for name, value in (tensors | divided).items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            own.setdefault(int(index), {})[key] = divided_as(value, parameters[int(index)])
    optimizer.load_state_dict({"state": own, "param_groups": numbers["groups"]})
    schedule.load_state_dict({**state.pop("schedule"), "lr_lambdas": [None] * len(optimizer.param_groups)})
    if (scale := state.pop("scaler")) and scaler is not None:
        scaler.load_state_dict(scale)
    put_back((tensors, state.pop("rng")))
    return state


def write_shards(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Write this rank's shards of weights and optimizer states, as safetensors with the place of each. Call it on all.

    Raises OSError where one rank could not write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    states = _flatten(optimizer.state_dict())[0]
    found = {f"weights.{name}": value.detach() for name, value in model.named_parameters()}
    found |= {name: value for name, value in states.items() if isinstance(value, DTensor)}
    with _quiet():
        try:
            save(found, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
        except CheckpointException as error:
            for rank, (why, _) in error.failures.items():
                if isinstance(why, OSError):
                    raise OSError(why.errno, f"{here().name(rank)}: {why.strerror}", str(folder)) from error
            raise


def are_shards(folder: Path) -> bool:
    """Whether `write_shards` wrote this folder."""
    return next(folder.glob("shard-*.safetensors"), None) is not None


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or divided among any number of ranks, with what `write_shards` wrote under their names.

    InputError where one is missing, or has another shape. Each rank reads what it needs, by itself.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    found: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
    kept = {name: tuple(each.size) for name, each in found.items()}
    for name, value in tensors.items():
        if kept.get(name) != tuple(value.shape):
            raise InputError(f"{folder}: {name} has the shape {kept.get(name)}, not {tuple(value.shape)}")
    with _quiet():
        load(dict(tensors), storage_reader=reader, no_dist=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on saving and loading in one process, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.distributed\.checkpoint")
        yield


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
