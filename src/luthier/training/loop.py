"""The training loop: a generator that takes one optimizer step per iteration and yields what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from luthier.errors import Diverged

Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, as logged."""

    index: int
    """1 for the first step."""
    loss: float
    """Nats per target, over all devices."""
    lr: float
    """Learning rate this step used."""
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Tokens that were no padding, over all devices."""
    targets: int
    """Targets, over all devices."""
    seconds: float


def fit(
    model: nn.Module,
    steps: Iterable[Sequence[Batch]],
    loss: Callable[[nn.Module, Batch], Tensor],
    targets: Callable[[Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    accelerator: Accelerator,
    *,
    clip: float = 1.0,
    penalty: Callable[[nn.Module], Tensor | None] = lambda model: None,
    after_step: Callable[[nn.Module, int], None] = lambda model, index: None,
    start: int = 0,
) -> Iterator[Step]:
    """Take one optimizer step for each list of micro-batches in `steps`, and yield it.

    `loss` returns the SUM over targets: we divide once by the targets of the whole step, over
    micro-batches and devices, so that a run does not depend on how a step is cut. Logging, evaluation,
    saving and stopping are the caller's. Raises Diverged before a step with a non-finite gradient, so
    the weights stay as they were.
    """
    for index, micro in enumerate(steps, start + 1):
        began = time.perf_counter()
        model.train()
        counts = torch.stack([torch.stack([targets(b), b["attention_mask"].sum()]) for b in micro]).sum(0)
        counts = accelerator.reduce(counts.to(accelerator.device), reduction="sum")
        divisor = counts[0].clamp(min=1)
        total = torch.zeros((), device=accelerator.device)
        for number, held in enumerate(micro, 1):
            batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in held.items()}
            with nullcontext() if number == len(micro) else accelerator.no_sync(model):
                with accelerator.autocast():
                    summed = loss(model, batch)
                # DDP averages gradients over devices; multiply to get the sum back.
                scaled = summed * accelerator.num_processes / divisor
                if number == len(micro) and (extra := penalty(model)) is not None:
                    scaled = scaled + extra
                accelerator.backward(scaled)
            total += summed.detach()
        mean = float(accelerator.reduce(total, reduction="sum") / divisor)
        norm = float(accelerator.clip_grad_norm_(model.parameters(), clip or float("inf")))
        # fp16 scaling meets infinite gradients by design and skips such steps itself.
        if accelerator.scaler is None and not (torch.isfinite(torch.tensor([mean, norm])).all()):
            raise Diverged(
                f"step {index}: the loss is {mean}, the gradient norm {norm}; the step was not taken",
                mend="lower train.lr, keep train.clip at 1.0, or use train.precision=bf16 or fp32",
            )
        lr = float(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        after_step(model, index)
        optimizer.zero_grad(set_to_none=True)
        yield Step(index, mean, lr, norm, int(counts[1]), int(counts[0]), time.perf_counter() - began)
