"""Optimizer and learning-rate schedule from the train block."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from luthier.core.errors import InputError
from luthier.models.targets import in_head
from luthier.training.optimizers.base import OPTIMIZERS
from luthier.training.settings import TrainConfig


def build_optimizer(
    model: nn.Module, config: TrainConfig, lr: float, ratio: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.Optimizer:
    """The optimizer over trainable parameters; biases and norms (fewer than two dimensions) take no decay.

    `ratio` is the factor on the learning rate of a parameter by its name. InputError where `head_lr` finds no head.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if config.head_lr and not any(in_head(name) for name, _ in trained):
        raise InputError("train.head_lr: this task trains no head for labels", fix="leave it out, or task=classify")
    split: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        rate = config.head_lr if config.head_lr and in_head(name) else lr * ratio(name)
        split.setdefault((decay, rate), []).append(parameter)
    groups = [{"params": parameters, "weight_decay": decay, "lr": rate} for (decay, rate), parameters in split.items()]
    return OPTIMIZERS.parse(config.optimizer).build(groups, lr, config.betas)


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> LambdaLR:
    """Linear warm-up, then linear or cosine to zero at the last step, or constant."""
    warm = round(config.warmup * steps) if config.warmup < 1 else min(steps, round(config.warmup))

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
