"""The model of a run with its optimizer on every rank, and how the other ranks carry out the orders of rank 0."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from luthier.core.errors import InputError
from luthier.core.ranks import here
from luthier.core.resources import is_out_of_memory
from luthier.data.prepared import Rows
from luthier.kernels.apply import checkpoint_layers, patched
from luthier.methods.base import Method, trainable_state
from luthier.models.files import not_finite
from luthier.rendering.row import Row
from luthier.tasks.base import Task
from luthier.training.checkpoint import Advanced, put_back, random_state, read_checkpoint, seed
from luthier.training.settings import RunSettings
from luthier.training.sharding import WholeStates, is_sharded, shard, whole
from luthier.training.step import (
    Batch,
    Cutter,
    Halted,
    Loop,
    RanOut,
    build_optimizer,
    build_schedule,
    held_out_batches,
    summed_losses,
)


class TunedModel:
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
        self.ranks, config, self.kept = here(), settings.train, ExitStack()
        if config.gradient_checkpointing is True:
            checkpoint_layers(model)
        half_on_cpu = accelerator.device.type == "cpu" and accelerator.mixed_precision != "no"
        self.cutter = Cutter(task, config, settings.pack, pad_id, longest if half_on_cpu else None)
        self.model = accelerator.prepare(model)
        if config.parallel == "fsdp" and self.ranks.several:
            shard(model, self.ranks.world, accelerator.device.type)
        self.sharded = is_sharded(model)
        assert config.lr is not None
        optimizer = build_optimizer(model, config, config.lr, method.lr_ratio_of)
        schedule = build_schedule(optimizer, config, settings.steps)
        states: Any = WholeStates(optimizer, self.ranks.leads) if self.sharded else optimizer
        self.advanced: Advanced = states, schedule, accelerator.scaler
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

    @contextmanager
    def whole(self, *, changes: bool = False) -> Iterator[None]:
        """Inside, this rank has all weights, where they are divided among the ranks. Every rank calls it at once."""
        with whole(self.raw, changes=changes) if self.sharded else nullcontext():
            yield

    def restore(self, folder: Path) -> None:
        """Put the weights back that a checkpoint has. Every rank calls it at once."""
        with self.whole(changes=True):
            self.method.restore(self.raw, folder)

    def hold(self) -> None:
        """Hold all weights from now on: no step follows. Every rank calls it at once."""
        self.kept.enter_context(self.whole())

    def gather(self) -> None:
        """Let every rank hold all weights, to evaluate and save them. Call it as leader, behind the last step."""
        if self.sharded:
            self.ranks.order("gathered")
            self.hold()

    def ruined_on_any(self) -> str:
        """Name of a weight that is not finite, on any rank; empty where there is none. Call it as leader."""
        if not self.sharded:
            return self.ruined()
        self.ranks.order("ruined")
        return next(filter(None, self.ranks.results(self.ruined)), "")

    def ruined(self) -> str:
        """Name of a weight on this rank that is not finite; empty where there is none."""
        own = trainable_state(self.raw).items()
        return not_finite((name, value.to_local() if self.sharded else value) for name, value in own)

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Inside, the model computes by Luthier's kernels."""
        with ExitStack() as stack:
            with self.whole():  # a trial of a layer needs its weights
                stack.enter_context(patched(self.raw, self.settings.pack is not None, self.settings.train.compile))
            yield

    def unwrap(self) -> None:
        """Take off what training put around the model."""
        # Measured as it will be used: without the autocast that accelerate put around forward.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def spare(self, rows: Sequence[Row]) -> list[Batch]:
        """A batch that is computed and does not count, where another rank has more of them than this one."""
        return self.cutter.collated([list(rows)]) if self.sharded else []

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
        found = hashlib.sha256()
        with self.whole():
            for name, value in sorted(trainable_state(self.raw).items()):
                found.update(name.encode())
                found.update(value.detach().cpu().clone().view(torch.uint8).numpy())
        return found.hexdigest()[:16]

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


def held_out_loss(tuned: TunedModel, rows: Rows, batch_size: int, halt: Callable[[], bool]) -> float:
    """Nats per target over all of `rows`, on every rank a share. Raises Halted where `halt` says so."""
    batches, ranks = held_out_batches(rows.lengths, batch_size), tuned.ranks

    def read(rank: int) -> Iterator[list[Row]]:
        return ([rows[i] for i in batch] for batch in batches[rank :: ranks.world])

    # One process reads a batch when it comes to it: the rows may be more than memory holds.
    mine: Iterable[Sequence[Row]] = read(0)
    if ranks.several:
        mine = ranks.share("held_out", [list(read(rank)) for rank in range(ranks.world)])
    with tuned.whole():
        found = ranks.results(lambda: summed_losses(tuned.raw, mine, tuned.cutter, tuned.accelerator, halt))
    total = count = 0.0
    for place in range(len(batches)):  # in the order of one process, so that the sum is the same
        losses, targets = found[place % ranks.world][place // ranks.world]
        total, count = total + losses, count + targets
    return total / max(1.0, count)


class StepFollower:
    """A rank that holds the same model as the leader and computes its share of each step."""

    def __init__(self, tuned: TunedModel, stops: Callable[[], bool]) -> None:
        """`stops` says whether this rank was asked to stop."""
        self.tuned, self.ranks, self.stops = tuned, tuned.ranks, stops
        self.stack = ExitStack()

    def handlers(self) -> dict[str, Callable[..., None]]:
        """What the leader can order."""
        names = ["train", "trained", "begin", "restore", "weights", "digest", "gradient", "take", "held_out"]
        names += ["save", "ruined", "gathered"]
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
        read_checkpoint(checkpoint, tuned.restore, tuned.advanced)

    def weights(self, folder: Path) -> None:
        """The weights that the run keeps."""
        self.tuned.restore(folder)

    def save(self) -> None:
        """Give the leader the shards of this rank, for a checkpoint."""
        with self.tuned.whole():
            self.ranks.gathered(None)
        self.tuned.advanced[0].state_dict()

    def ruined(self) -> None:
        """Whether a weight is not finite."""
        self.ranks.results(self.tuned.ruined)

    def gathered(self) -> None:
        """Hold all weights from now on."""
        self.tuned.hold()

    def digest(self) -> None:
        """A hash of the weights, for the leader."""
        self.ranks.results(self.tuned.digest)

    def gradient(self) -> None:
        """Run this rank's rows forward and backward."""
        tuned = self.tuned
        index, halvings, rows, spare = self.ranks.scattered()
        tuned.loop.optimizer.zero_grad(set_to_none=True)
        # Dropout differs between ranks, and a resumed run draws the same.
        torch.manual_seed(tuned.settings.seed * 1_000_003 + index * 8_191 + self.ranks.rank)
        tuned.method.before_step(tuned.raw, index, tuned.settings.seed)
        try:
            tuned.loop.gradient(tuned.cutter.collated(tuned.cutter.cut(rows, halvings)), self.stops, tuned.spare(spare))
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
        with tuned.whole():
            self.ranks.results(lambda: summed_losses(tuned.raw, parts, tuned.cutter, tuned.accelerator, lambda: False))
