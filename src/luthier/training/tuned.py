"""The model of a run with its optimizer on every rank, and how the other ranks carry out the orders of rank 0."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

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
from luthier.models.sharding import Sharding, gathered_parts, gathered_state, held_whole, is_sharded, shard
from luthier.rendering.row import Row
from luthier.tasks.base import Task
from luthier.training.checkpoint import (
    Advanced,
    are_shards,
    put_back,
    random_state,
    read_checkpoint,
    read_shards,
    seed,
    write_shards,
)
from luthier.training.settings import RunSettings, TrainConfig
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

MOST_OF_FILE = "2GB"
"""Size of a file of the whole weights that were divided: rank 0 holds them once, and one file more."""


def sharding_of(config: TrainConfig, device: str, *, half: bool = False) -> Sharding | None:
    """How the weights of a run are divided; None where each rank holds all. `half`: gather float32 ones as bfloat16."""
    ranks = here()
    if not ranks.several or config.parallel not in ("fsdp", "hsdp"):
        return None
    shards = ranks.on_host if config.parallel == "hsdp" else ranks.world
    return Sharding(device, shards, torch.bfloat16 if half else None, config.offload)


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
        of_base: Collection[nn.Parameter] = (),
    ) -> None:
        """`longest` is the length of the longest training row; None where it is not known.

        `of_base` are the parameters that the base had before the method: those are divided among ranks. The method's
        own are small, and every rank has them whole, as with DDP.
        """
        self.raw, self.method, self.settings, self.accelerator = model, method, settings, accelerator
        self.ranks, config = here(), settings.train
        if config.gradient_checkpointing is True:
            checkpoint_layers(model)
        half_on_cpu = accelerator.device.type == "cpu" and accelerator.mixed_precision != "no"
        self.cutter = Cutter(task, config, settings.pack, pad_id, longest if half_on_cpu else None)
        how = sharding_of(config, accelerator.device.type, half=accelerator.mixed_precision == "bf16")
        self.model = accelerator.prepare_model(model, device_placement=how is None)
        if how is not None:
            keeps = method.saves == "adapter"
            named = model.named_parameters()
            shard(model, how, frozenset(n for n, p in named if p not in of_base or (keeps and p.requires_grad)))
        self.sharded = is_sharded(model)
        self.shards_train = self.sharded and method.saves == "model"
        assert config.lr is not None
        optimizer = build_optimizer(model, config, config.lr, partial(method.lr_ratio_of, model))
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

    def restore(self, folder: Path) -> None:
        """Put the weights back that a checkpoint has. Every rank calls it at once."""
        if are_shards(folder):
            read_shards(folder, {f"weights.{name}": value.detach() for name, value in self.raw.named_parameters()})
            return
        with held_whole(self.raw, changes=True) if self.shards_train else nullcontext():
            self.method.restore(self.raw, folder)

    def save(self, folder: Path) -> None:
        """Write the weights of a checkpoint; divided ones by each rank. Call it as leader."""
        if self.shards_train:
            self.ranks.order("save", folder)
            write_shards(folder, self.raw, self.advanced[0])
        else:
            self.method.save(self.raw, folder, training=True)

    def save_whole(self, folder: Path) -> None:
        """Write the weights that the run keeps, as one process does. Call it as leader."""
        if self.shards_train:
            self.ranks.order("gather")
            state = gathered_state(self.raw, leads=True)
            # safetensors copies a whole file before it writes it.
            self.raw.save_pretrained(folder, state_dict=state, max_shard_size=MOST_OF_FILE)  # type: ignore[operator]
        else:
            self.method.save(self.raw, folder)

    def ruined_on_any(self) -> str:
        """Name of a weight that is not finite, on any rank; empty where there is none. Call it as leader."""
        if not self.shards_train:
            return self.ruined()
        self.ranks.order("ruined")
        return next(filter(None, self.ranks.results(self.ruined)), "")

    def ruined(self) -> str:
        """Name of a weight on this rank that is not finite; empty where there is none."""
        own = trainable_state(self.raw).items()
        return not_finite((name, value.to_local() if self.shards_train else value) for name, value in own)

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Inside, the model computes by Luthier's kernels."""
        parts = gathered_parts(self.raw) if self.sharded else None  # a trial of a layer needs its weights
        with patched(self.raw, self.settings.pack is not None, self.settings.train.compile, parts=parts):
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
        for name, value in sorted(trainable_state(self.raw).items()):
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
        return found.hexdigest()[:16]

    def compare_weights(self) -> None:
        """InputError where another rank would train other weights than this one. Call it as leader."""
        if not self.ranks.several or self.shards_train:  # what is divided came from the leader
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
        names += ["save", "ruined", "gather"]
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

    def save(self, folder: Path) -> None:
        """Write the shards of this rank into a checkpoint."""
        with suppress(OSError):  # the leader has it too, and says so
            write_shards(folder, self.tuned.raw, self.tuned.advanced[0])

    def gather(self) -> None:
        """Give the leader the shards of this rank, one tensor at a time."""
        gathered_state(self.tuned.raw, leads=False)

    def ruined(self) -> None:
        """Whether a weight is not finite."""
        self.ranks.results(self.tuned.ruined)

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
        self.ranks.results(lambda: summed_losses(tuned.raw, parts, tuned.cutter, tuned.accelerator, lambda: False))
