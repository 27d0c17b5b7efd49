"""The type that a run computes in, and accelerate set up for it."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from luthier.config import ModelConfig, TrainConfig
from luthier.errors import InputError
from luthier.models.load import device
from luthier.ops.heap import keep_freed_memory


def check_precision(model: ModelConfig, config: TrainConfig) -> str:
    """fp32, bf16 or fp16; InputError where the device cannot serve what the recipe asks."""
    where = device(model)
    if config.precision == "auto":
        return "fp32" if where != "cuda" else ("bf16" if torch.cuda.is_bf16_supported() else "fp16")
    if config.precision == "fp16" and where == "cpu":
        raise InputError(
            "train.precision=fp16 cannot serve on a CPU: autocast to fp16 would do nothing, in silence",
            mend="train.precision=auto (fp32 here, bf16 or fp16 on a GPU)",
        )
    return config.precision


def accelerator_for(model: ModelConfig, config: TrainConfig) -> Accelerator:
    """An accelerator with the device and precision of the recipe."""
    precision = check_precision(model, config)
    # accelerate keeps one precision per process; a second run in the same process may want another.
    AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = device(model) == "cpu"
    if on_cpu:
        keep_freed_memory()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision)
    if accelerator.num_processes > 1:
        raise InputError("this version trains in one process", mend="start it without torchrun or accelerate launch")
    return accelerator
