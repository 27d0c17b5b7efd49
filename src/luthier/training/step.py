"""Accelerator, optimizer, schedule, one step, and the held-out loss. The policies around them are the trainer's."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from luthier.core.errors import InputError
from luthier.core.ranks import Ranks, here
from luthier.core.resources import is_out_of_memory
from luthier.data.batches import micro_batches
from luthier.kernels.process import keep_freed_memory
from luthier.models.sharding import clip, is_sharded, without_gradients
from luthier.models.targets import in_head
from luthier.rendering.row import Row
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
    # The first group's rate is the one shown.
    for name, parameter in sorted(trained, key=lambda each: (in_head(each[0]), ratio(each[0]) != 1)):
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


class RanOut(Exception):
    """Memory ran out on another rank; no step was taken."""


@dataclass(frozen=True, slots=True)
class Cutter:
    """How rows become micro-batches and tensors."""

    task: Task
    config: TrainConfig
    pack: int | None
    """Tokens of a packed sequence; None: rows are padded."""
    pad_id: int
    even: int | None
    """Longest row, where lengths are evened."""

    def rows_per_pass(self, halvings: int = 0) -> int:
        """Rows of a padded forward pass."""
        return max(1, self.config.rows_per_pass >> halvings)

    def cut(self, rows: Sequence[Row], halvings: int = 0) -> list[list[Row]]:
        """Micro-batches, smaller where memory ran out `halvings` times."""
        if not rows:
            return []
        config = self.config
        tokens = config.micro_tokens and max(1, config.micro_tokens >> halvings)
        size: dict[str, Any] = {"micro_batch": self.rows_per_pass(halvings), "micro_tokens": tokens}
        pack, lengths = self.pack and max(1, self.pack >> halvings), [len(row.ids) for row in rows]
        parts = micro_batches(lengths, by_length=config.group_by_length, pack=pack, **size)
        return [[rows[number] for number in part] for part in parts]

    def collated(self, parts: Sequence[list[Row]]) -> list[Batch]:
        """Each micro-batch as tensors of the task, [rows, tokens], or packed into one row."""
        task = self.task
        return [task.pack(p, even=True) if self.pack else task.collate(p, self.pad_id, self.even) for p in parts]


@dataclass(frozen=True, slots=True)
class Loop:
    """All that a step needs. Losses are SUMS, divided once by the targets of the whole step, however it is cut.

    Among several ranks each computes its share of the micro-batches; the sums and gradients are those of all.
    """

    model: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    accelerator: Accelerator
    clip: float = 1.0
    penalty: Callable[[], Tensor | None] = lambda: None
    after_step: Callable[[int], None] = lambda index: None

    def gradient(
        self, micro: Sequence[Batch], stops: Callable[[], bool] = lambda: False, spare: Sequence[Batch] = ()
    ) -> Gradient:
        """Run the micro-batches of a step forward and backward, and clip.

        Where weights are divided among the ranks, `spare` is computed without counting until all have made as many
        passes.

        Raises Halted where `stops` says so: between two micro-batches, or, among several ranks, behind the last one of
        the rank that is to stop. Raises RanOut where memory ran out on another rank.
        """
        accelerator, ranks = self.accelerator, here()
        self.model.train()
        counts = torch.zeros(2, dtype=torch.long)
        for batch in micro:
            counts += torch.stack([self.task.targets(batch), batch["attention_mask"].sum()]).long()
        ranks.summed(counts)
        divisor = counts[0].clamp(min=1).to(accelerator.device)
        total = torch.zeros((), device=accelerator.device)
        failure: Exception | None = None
        sharded = is_sharded(self.model)
        passes = ranks.most(len(micro)) if sharded else len(micro)
        try:
            for number, held in enumerate([*micro, *(spare[0] for _ in range(passes - len(micro)))], 1):
                if not ranks.several and stops():
                    raise Halted
                batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in held.items()}
                with accelerator.autocast():
                    summed = self.task.losses(self.model, batch)[0].sum()
                if number > len(micro):
                    summed = summed * 0.0
                scaled = summed / divisor
                # It depends on the weights alone, so one rank adds it for all.
                if number == len(micro) and ranks.leads and (extra := self.penalty()) is not None:
                    scaled = scaled + extra
                accelerator.backward(scaled)
                total += summed.detach()
                del summed, scaled  # the graph's many small pieces lie between what the next pass could use as one
        except (RuntimeError, MemoryError) as error:
            if not ranks.several or sharded or not is_out_of_memory(error):
                raise  # in the middle of a gathering the other ranks cannot go on
            failure = error
        if ranks.several:
            said = torch.tensor([float(total), failure is not None, stops()], dtype=torch.float64)
            whole, ran_out, halt = ranks.summed(said).tolist()
            if failure is not None:
                raise failure
            if ran_out:
                raise RanOut
            if halt:
                raise Halted
            total = total.new_tensor(whole)
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            if any(isinstance(each, DTensor) for each in trained):  # FSDP2 has summed them
                norm = clip(trained, self.clip or float("inf"))
                return Gradient(float(total / divisor), norm, int(counts[1]), int(counts[0]))
            sum_gradients(trained, ranks)
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


BUCKET = 2**25
"""Bytes of gradients that are sent at once."""


def sum_gradients(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Let every parameter have the sum of its gradients over all ranks, also where a rank had no row for it.

    torch's DistributedDataParallel expects as many backward passes of each rank, and a gradient for every parameter in
    each of them: a step may have fewer rows than ranks, and some methods leave parameters out of a pass.
    """
    with_gradient = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    ranks.summed(with_gradient)
    bucket: list[Tensor] = []
    for parameter, somewhere in zip(parameters, with_gradient.tolist(), strict=True):
        if not somewhere:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (bucket[0].dtype != parameter.grad.dtype or _bytes(bucket) + parameter.grad.nbytes > BUCKET):
            _sum_bucket(bucket, ranks)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _sum_bucket(bucket, ranks)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _sum_bucket(gradients: Sequence[Tensor], ranks: Ranks) -> None:
    flat = ranks.summed(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def summed_losses(
    model: nn.Module, parts: Iterable[Sequence[Row]], cutter: Cutter, accelerator: Accelerator, halt: Callable[[], bool]
) -> list[tuple[float, float]]:
    """(sum of losses, targets) of each batch of rows. Raises Halted where `halt` says so between two batches."""
    found = []
    model.eval()
    with without_gradients(model), accelerator.autocast():
        for part in parts:
            if halt():
                raise Halted
            batch = cutter.task.collate(part, cutter.pad_id)
            sums, targets = cutter.task.losses(model, {k: v.to(accelerator.device) for k, v in batch.items()})
            found.append((float(sums.sum()), float(targets.sum())))
    return found


def held_out_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """The numbers of all rows, of these lengths in tokens, in batches: those of like length together."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
