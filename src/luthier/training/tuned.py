"""The model of a run with its optimizer, as every rank holds it, and what a rank that follows does when it is told."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from luthier.core.errors import InputError
from luthier.core.ranks import here
from luthier.core.resources import is_out_of_memory
from luthier.kernels.apply import checkpoint_layers, patched
from luthier.methods.base import Method, trainable_state
from luthier.rendering.row import Row
from luthier.tasks.base import Task
from luthier.training.checkpoint import Advanced, put_back, random_state, read_checkpoint, seed
from luthier.training.settings import RunSettings
from luthier.training.step import (
    Cutter,
    Halted,
    Loop,
    RanOut,
    build_optimizer,
    build_schedule,
    summed_losses,
)


class Tuned:
    """Model, optimizer and schedule of a run, and how its rows become tensors."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        method: Method,
        settings: RunSettings,
        accelerator: Accelerator,
        pad_id: int,
        longest: int | None,
    ) -> None:
        """`longest` is the length of the longest training row; None where it is not known."""
        self.raw, self.method, self.settings, self.accelerator = model, method, settings, accelerator
        self.ranks, config = here(), settings.train
        if config.gradient_checkpointing is True:
            checkpoint_layers(model)
        half_on_cpu = accelerator.device.type == "cpu" and accelerator.mixed_precision != "no"
        self.cutter = Cutter(task, config, settings.pack, pad_id, longest if half_on_cpu else None)
        self.model = accelerator.prepare(model)
        assert config.lr is not None
        optimizer = build_optimizer(model, config, config.lr, method.lr_ratio_of)
        schedule = build_schedule(optimizer, config, settings.steps)
        self.advanced: Advanced = optimizer, schedule, accelerator.scaler
        calls = partial(method.penalty, model), partial(method.after_step, model)
        prepared = accelerator.prepare(optimizer)
        self.loop = Loop(self.model, task, prepared, schedule, accelerator, config.clip, *calls)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, the model computes by Luthier's kernels, here and on every follower."""
        self.ranks.order("train")
        with self.patched():
            yield
        self.ranks.order("trained")
        self.unwrap()

    def patched(self) -> Any:
        """Inside, the model computes by Luthier's kernels."""
        return patched(self.raw, self.settings.pack is not None, self.settings.train.compile)

    def unwrap(self) -> None:
        """Take off what training put around the model."""
        # Measured as it will be used: without the autocast that accelerate put around forward.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def begin_on_all(self, rows: Sequence[Row]) -> None:
        """Let the method look at these rows before the first step, on every rank."""
        self.ranks.order("begin", list(rows))
        self.begin(rows)

    def begin(self, rows: Sequence[Row]) -> None:
        """Let the method look at these rows before the first step."""
        device, task = self.accelerator.device, self.cutter.task

        def loss(row: Row) -> Callable[[nn.Module], torch.Tensor]:
            batch = {k: v.to(device) for k, v in task.collate([row], self.cutter.pad_id).items()}
            return lambda model: task.losses(model, batch)[0].sum()

        self.method.begin(self.raw, map(loss, rows))

    def digest(self) -> str:
        """A hash of the weights that train."""
        whole = hashlib.sha256()
        for name, value in sorted(trainable_state(self.raw).items()):
            whole.update(name.encode())
            whole.update(value.detach().contiguous().cpu().view(torch.uint8).numpy())
        return whole.hexdigest()[:16]

    def compare_weights(self) -> None:
        """InputError where another rank would train other weights than this one. Call it as leader."""
        if not self.ranks.several:
            return
        self.ranks.order("digest")
        own, *others = self.ranks.results(self.digest)
        for rank, theirs in enumerate(others, 1):
            if theirs != own:
                why = f"{self.ranks.name(rank)} begins with other weights ({theirs}) than {self.ranks.name(0)} ({own})"
                raise InputError(why, fix="the same base, adapter and versions on every host, and one shared folder")


class Follower:
    """A rank that holds the same model as the leader and computes its share of each step."""

    def __init__(self, tuned: Tuned, stops: Callable[[], bool]) -> None:
        """`stops` says whether this rank was asked to stop."""
        self.tuned, self.ranks, self.stops = tuned, tuned.ranks, stops
        self.stack = ExitStack()

    def handlers(self) -> dict[str, Callable[..., None]]:
        """What the leader can order."""
        names = ("train", "trained", "begin", "restore", "weights", "digest", "gradient", "take", "held_out")
        return {name: getattr(self, name) for name in names}

    def train(self) -> None:
        """Steps follow."""
        before = random_state()
        self.stack.enter_context(self.tuned.patched())
        put_back(before)

    def trained(self) -> None:
        """No more steps follow."""
        self.stack.close()
        self.tuned.unwrap()

    def begin(self, rows: Sequence[Row]) -> None:
        """As the leader: see `Method.begin`."""
        seed(self.tuned.settings.seed)
        self.tuned.begin(rows)

    def restore(self, checkpoint: Path) -> None:
        """Weights and optimizer of a checkpoint. What this rank draws follows from step and rank."""
        tuned = self.tuned
        if not checkpoint.is_dir():
            name = self.ranks.name(self.ranks.rank)
            raise InputError(
                f"{checkpoint} is not there on {name}: the run folder must be on a disk that all hosts share"
            )
        read_checkpoint(checkpoint, partial(tuned.method.restore, tuned.raw), tuned.advanced)

    def weights(self, folder: Path) -> None:
        """The weights that the run keeps."""
        self.tuned.method.restore(self.tuned.raw, folder)

    def digest(self) -> None:
        """A hash of the weights, for the leader."""
        self.ranks.results(self.tuned.digest)

    def gradient(self) -> None:
        """Run this rank's rows forward and backward."""
        tuned = self.tuned
        index, halvings, rows = self.ranks.scattered()
        tuned.loop.optimizer.zero_grad(set_to_none=True)
        # Dropout differs between ranks, and a resumed run draws the same.
        torch.manual_seed(tuned.settings.seed * 1_000_003 + index * 8_191 + self.ranks.rank)
        tuned.method.before_step(tuned.raw, index, tuned.settings.seed)
        try:
            tuned.loop.gradient(tuned.cutter.collated(tuned.cutter.cut(rows, halvings)), self.stops)
        except (Halted, RanOut):
            tuned.loop.optimizer.zero_grad(set_to_none=True)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            tuned.loop.optimizer.zero_grad(set_to_none=True)

    def take(self, index: int, leave_out: bool) -> None:
        """Step the optimizer, or leave the step out."""
        self.tuned.loop.take(index, leave_out=leave_out)

    def held_out(self) -> None:
        """Losses of this rank's share of the held-out rows."""
        tuned, parts = self.tuned, self.ranks.scattered()
        self.ranks.results(lambda: summed_losses(tuned.raw, parts, tuned.cutter, tuned.accelerator, lambda: False))
