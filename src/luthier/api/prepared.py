"""The layer below `train`: model, rows and optimizer, and the loop's own step, for those who write the loop."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from luthier.core.errors import InputError
from luthier.core.files import MANIFEST
from luthier.pipeline.prepare import Loaded
from luthier.pipeline.train import save_weights
from luthier.rendering.row import Row
from luthier.training.checkpoint import put_back, random_state
from luthier.training.step import Gradient
from luthier.training.trainer import Trainer

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class PreparedRun:
    """All that a step needs. Use it as a context, or close it: until then the model computes by Luthier's kernels."""

    def __init__(self, loaded: Loaded, trainer: Trainer) -> None:
        self._loaded, self._trainer = loaded, trainer
        self._gradient: Gradient | None = None
        self._stack = ExitStack()
        before = random_state()
        self._stack.enter_context(trainer.tuned.patched())
        put_back(before)  # a trial of a layer may draw

    @property
    def model(self) -> "nn.Module":
        """The base with the method on it: PEFT's model, or transformers' own where the method has no adapter."""
        return self._trainer.raw

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, with the chat template."""
        return self._loaded.template.tokenizer

    @property
    def optimizer(self) -> "Optimizer":
        """Over the parameters that train. A learning rate that is set here holds until the schedule's next step."""
        return self._trainer.optimizer

    @property
    def rows(self) -> Sequence[Row]:
        """The training rows: `ids` and `labels` of T tokens each, -100 where nothing is learned; none of a stream."""
        return self._trainer.data.rows

    @property
    def held_out(self) -> Sequence[Row]:
        """The validation rows, in the same form."""
        return self._trainer.data.validation_rows

    @property
    def steps(self) -> int:
        """Steps that `train` would take."""
        return self._trainer.steps

    @property
    def step(self) -> int:
        """Steps taken so far, those that were left out included."""
        return int(self._trainer.state["step"])

    @property
    def lr(self) -> float:
        """Learning rate of the next step, of the first group of parameters."""
        return float(self._trainer.schedule.get_last_lr()[0])

    def batches(self) -> Iterator[list[Row]]:
        """The rows of each step that is left, as `train` takes them: `train.batch_size` rows in the seed's order."""
        stream = self._trainer.data.stream
        coming = iter(()) if stream is None else stream.rows()
        for step in range(self.step, self.steps):
            yield self._trainer.rows_of(step, coming)

    def gradient(self, rows: Sequence[Row]) -> Gradient:
        """Run rows forward and backward in micro-batches; the gradient, clipped, lies in the parameters.

        Returns `loss` (nats per target), `norm` (before clipping), `tokens` and `targets`. Calls before a `take` add
        up. InputError where there is no row, OutOfMemory where they do not fit: then fewer at a time, by
        `train.micro_batch`.
        """
        if not rows:
            raise InputError("gradient: there are no rows", fix="give those of batches(), or rows[:8]")
        trainer = self._trainer
        trainer.method.before_step(trainer.raw, self.step + 1, trainer.settings.seed)
        self._gradient = trainer.loop.gradient(
            trainer.cutter.collated(trainer.cutter.cut(rows, trainer.state["halvings"]))
        )
        return self._gradient

    def take(self) -> bool:
        """Step optimizer and schedule by the gradient that was made, and clear it.

        False where the step was left out, because loss or gradient was not finite. InputError without a gradient.
        """
        found, trainer = self._gradient, self._trainer
        if found is None:
            raise InputError("take: there is no gradient to step by", fix="gradient(rows) comes first")
        scaled = trainer.accelerator.scaler is not None and isfinite(found.loss)
        taken = trainer.loop.take(self.step + 1, leave_out=not found.finite and not scaled)
        trainer.state["step"] += 1
        self._gradient = None
        return taken

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the tuned weights in PEFT's format, or the whole model of method full, with the tokenizer.

        InputError where the folder holds anything but such weights, which are replaced.
        """
        target = Path(folder)
        if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{target} is there already, and holds no weights of Luthier's", fix="name another folder")
        save_weights(self._loaded, target, "")
        return target

    def close(self) -> None:
        """Take Luthier's kernels out of the model, which computes the same without them."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        config = self._loaded.config
        return f"PreparedRun({config.method.name} on {config.model.path}, step {self.step} of {self.steps})"
