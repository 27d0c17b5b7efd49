"""Optimizer and learning-rate schedule from the train block."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from luthier.config import TrainConfig
from luthier.errors import InputError
from luthier.heads import in_head


def build_optimizer(
    model: nn.Module, config: TrainConfig, lr: float, ratio: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.Optimizer:
    """The optimizer over trainable parameters; biases and norms (fewer than two dimensions) take no decay.

    `ratio` is the factor on the learning rate of a parameter by its name. InputError where `head_lr` finds no head.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if config.head_lr and not any(in_head(name) for name, _ in trained):
        raise InputError("train.head_lr: this task trains no head for labels", mend="leave it out, or task=classify")
    split: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        rate = config.head_lr if config.head_lr and in_head(name) else lr * ratio(name)
        split.setdefault((decay, rate), []).append(parameter)
    groups = [{"params": parameters, "weight_decay": decay, "lr": rate} for (decay, rate), parameters in split.items()]
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=config.betas)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=config.betas)
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=config.betas[0])
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=lr)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=lr)
        case "adamw_8bit" | "paged_adamw" | "paged_adamw_8bit" as name:
            return _bitsandbytes(name, groups, lr, config.betas)


def _bitsandbytes(name: str, groups: list[Any], lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW with states in 8 bit (arXiv 2110.02861) or in pageable memory (arXiv 2305.14314, section 3)."""
    import bitsandbytes as bnb

    # On a CPU there is nothing to page to: bitsandbytes then takes the plain form, which computes the same.
    warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU", UserWarning)
    kinds = {"adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW32bit", "paged_adamw_8bit": "PagedAdamW8bit"}
    made: torch.optim.Optimizer = getattr(bnb.optim, kinds[name])(groups, lr=lr, betas=betas)
    return made


def warmup_steps(config: TrainConfig, steps: int) -> int:
    """Steps of warm-up: a share of all steps below 1, else their number."""
    return round(config.warmup * steps) if config.warmup < 1 else min(steps, round(config.warmup))


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> LambdaLR:
    """Linear warm-up, then linear or cosine to zero at the last step, or constant."""
    warm = warmup_steps(config, steps)

    def factor(done: int) -> float:
        if done < warm:
            return (done + 1) / (warm + 1)
        share = (done - warm) / max(1, steps - warm)
        match config.schedule:
            case "linear":
                return max(0.0, 1.0 - share)
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
            case "constant":
                return 1.0

    return LambdaLR(optimizer, factor)
