"""Accelerator, optimizer, schedule, one step, and the held-out loss. The policies around them are the trainer's."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from luthier.core.errors import InputError
from luthier.data.prepared import Prepared
from luthier.kernels.process import keep_freed_memory
from luthier.models.targets import in_head
from luthier.tasks.base import Task
from luthier.training.optimizers.base import OPTIMIZERS
from luthier.training.settings import TrainConfig

Batch = dict[str, Tensor]


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
    return OPTIMIZERS.parse(config.optimizer).build(groups, lr, config.betas)  # type: ignore[no-any-return]


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> LambdaLR:
    """Linear warm-up, then linear or cosine to zero at the last step, or constant."""
    warm = round(config.warmup * steps) if config.warmup < 1 else min(steps, round(config.warmup))

    def factor(done: int) -> float:
        if done < warm:
            return (done + 1) / (warm + 1)
        share = min(1.0, (done - warm) / max(1, steps - warm))
        cosine = 0.5 * (1.0 + math.cos(math.pi * share))
        return {"linear": 1.0 - share, "cosine": cosine, "constant": 1.0}[config.schedule]

    return LambdaLR(optimizer, factor)


class Halted(Exception):
    """A stop was asked for between two micro-batches; no step was taken."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """What the micro-batches of a step gave; the gradient itself lies in the parameters."""

    loss: float
    """Nats per target."""
    norm: float
    """Before clipping."""
    tokens: int
    """Tokens without padding."""
    targets: int

    @property
    def finite(self) -> bool:
        """True where loss and gradient are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


@dataclass(frozen=True, slots=True)
class Loop:
    """All that a step needs. Losses are SUMS, divided once by the targets of the whole step, however it is cut."""

    model: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    accelerator: Accelerator
    clip: float = 1.0
    penalty: Callable[[], Tensor | None] = lambda: None
    after_step: Callable[[int], None] = lambda index: None

    def gradient(self, micro: Sequence[Batch], halt: Callable[[], bool] = lambda: False) -> Gradient:
        """Run the micro-batches of a step forward and backward, and clip. Raises Halted where `halt` says so."""
        accelerator = self.accelerator
        self.model.train()
        counts = torch.stack([torch.stack([self.task.targets(b), b["attention_mask"].sum()]) for b in micro]).sum(0)
        divisor = counts[0].clamp(min=1).to(accelerator.device)
        total = torch.zeros((), device=accelerator.device)
        for number, held in enumerate(micro, 1):
            if halt():
                raise Halted
            batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in held.items()}
            with accelerator.autocast():
                summed = self.task.losses(self.model, batch)[0].sum()
            scaled = summed / divisor
            if number == len(micro) and (extra := self.penalty()) is not None:
                scaled = scaled + extra
            accelerator.backward(scaled)
            total += summed.detach()
            del summed, scaled  # the graph's many small pieces lie between what the next pass could use as one
        norm = float(accelerator.clip_grad_norm_(self.model.parameters(), self.clip or float("inf")))
        return Gradient(float(total / divisor), norm, int(counts[1]), int(counts[0]))

    def take(self, index: int, *, leave_out: bool = False) -> bool:
        """Take step `index`, or leave it out: then only the schedule advances. False where it was not taken."""
        # With fp16 the loss's scale makes infinite gradients now and then, by design; such a step is left out by the
        # scaler itself, which lowers the scale.
        if not leave_out or self.accelerator.scaler is not None:
            self.optimizer.step()
        taken = not leave_out and not getattr(self.optimizer, "step_was_skipped", False)
        with warnings.catch_warnings():  # of a first step that was left out: torch expects one before the schedule's
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before")
            self.schedule.step()
        if not taken:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()  # what counts steps (AdaLoRA's budget) sees this one, and nothing in it
        self.after_step(index)
        self.optimizer.zero_grad(set_to_none=True)
        return taken


def held_out_loss(
    model: nn.Module, data: Prepared, pad_id: int, batch_size: int, accelerator: Accelerator, halt: Callable[[], bool]
) -> float:
    """Nats per target over all validation rows. Raises Halted where `halt` says so between two batches."""
    rows, lengths = data.validation_rows, data.validation_rows.lengths
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    total = count = 0.0
    model.eval()
    with torch.inference_mode(), accelerator.autocast():
        for start in range(0, len(rows), batch_size):
            if halt():
                raise Halted
            batch = data.task.collate([rows[i] for i in order[start : start + batch_size]], pad_id)
            sums, targets = data.task.losses(model, {k: v.to(accelerator.device) for k, v in batch.items()})
            total, count = total + float(sums.sum()), count + float(targets.sum())
    return total / max(1.0, count)
