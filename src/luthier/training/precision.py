"""The type that a run computes in, and accelerate set up for it."""

from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from luthier.core.errors import InputError
from luthier.kernels.process import keep_freed_memory
from luthier.training.settings import TrainConfig


def precision_on(device: str, config: TrainConfig) -> Literal["fp32", "bf16", "fp16"]:
    """What matrix products are computed in; InputError where the device cannot serve what the recipe asks."""
    if config.precision == "auto":
        return "fp32" if device != "cuda" else ("bf16" if torch.cuda.is_bf16_supported() else "fp16")
    if config.precision == "fp16" and device == "cpu":
        raise InputError(
            "train.precision=fp16 cannot serve on a CPU: autocast to fp16 would do nothing, in silence",
            fix="train.precision=auto (fp32 here, bf16 or fp16 on a GPU)",
        )
    return config.precision


def accelerator_on(device: str, precision: str) -> Accelerator:
    """An accelerator of this device (cpu, cuda, mps) and precision (fp32, bf16, fp16)."""
    # accelerate keeps one precision per process; a second run in the same process may want another.
    AcceleratorState._reset_state(reset_partial_state=True)
    if device == "cpu":
        keep_freed_memory()
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no" if precision == "fp32" else precision)
    if accelerator.num_processes > 1:
        raise InputError("this version trains in one process", fix="start it without torchrun or accelerate launch")
    return accelerator
