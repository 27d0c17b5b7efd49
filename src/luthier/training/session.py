"""One training session: the policies around the loop. When to log, evaluate, save, keep and stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from luthier.config import ModelConfig, TrainConfig
from luthier.data.batches import micro_batches, step_numbers, steps_per_epoch
from luthier.data.prepared import Prepared
from luthier.errors import DataError, InputError, Stopped
from luthier.folder import RunFolder
from luthier.methods.base import Method
from luthier.models.load import device
from luthier.ops.fused import fused
from luthier.tasks.base import Row
from luthier.training import checkpoint as checkpoints
from luthier.training.loop import Batch, Step, fit
from luthier.training.optim import build_optimizer, build_schedule
from luthier.training.progress import Progress
from luthier.training.signals import StopRequest, watch


@dataclass(slots=True)
class Outcome:
    """How training ended."""

    steps: int
    kept_step: int
    kept_best: bool
    stopped_early: bool
    seconds: float
    tokens: int


def total_steps(config: TrainConfig, rows: int) -> int:
    """Optimizer steps of the run: half an epoch of 63 steps is 32."""
    return config.steps or max(1, ceil(config.epochs * steps_per_epoch(rows, config.batch_size)))


def check_precision(model: ModelConfig, config: TrainConfig) -> str:
    """fp32, bf16 or fp16; InputError where the device cannot serve what the recipe asks."""
    where = device(model)
    if config.precision == "auto":
        return "fp32" if where != "cuda" else ("bf16" if torch.cuda.is_bf16_supported() else "fp16")
    if config.precision == "fp16" and where == "cpu":
        raise InputError(
            "train.precision=fp16 cannot serve on a CPU: autocast to fp16 would do nothing, in silence",
            mend="train.precision=auto (fp32 here, bf16 or fp16 on a GPU)",
        )
    return config.precision


def accelerator_for(model: ModelConfig, config: TrainConfig) -> Accelerator:
    """An accelerator with the device and precision of the recipe."""
    precision = check_precision(model, config)
    # accelerate keeps one precision per process; a second run in the same process may want another.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=device(model) == "cpu", mixed_precision="no" if precision == "fp32" else precision)
    if accelerator.num_processes > 1:
        raise InputError("this version trains in one process", mend="start it without torchrun or accelerate launch")
    return accelerator


class Session:
    """Model, data and optimizer of one run, and what has happened so far."""

    def __init__(
        self, model: nn.Module, data: Prepared, method: Method, config: TrainConfig, *,
        lr: float, seed: int, pad_id: int, accelerator: Accelerator, folder: RunFolder, progress: Progress,
        pack: int | None = None,
    ) -> None:  # fmt: skip
        self.data, self.method, self.config, self.seed, self.pad_id = data, method, config, seed, pad_id
        self.accelerator, self.folder, self.progress, self.pack = accelerator, folder, progress, pack
        self.steps = total_steps(config, len(data.rows))
        # Nobody knows how long a stream's epoch is: intervals are shares of the run there.
        self.per_epoch = self.steps if data.stream else steps_per_epoch(len(data.rows), config.batch_size)
        self.raw = model
        self.model = accelerator.prepare(model)
        optimizer = build_optimizer(model, config, lr, method.lr_ratio_of)
        self.schedule = build_schedule(optimizer, config, self.steps)
        self.optimizer = accelerator.prepare(optimizer)
        self.state: dict[str, Any] = {"step": 0, "best_step": 0, "best_loss": None, "without_gain": 0}
        self.state |= {"seconds": 0.0, "tokens": 0}

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        found, broken = checkpoints.newest(self.folder.checkpoints)
        for aside in broken:
            self.progress.warn(f"{aside} is damaged and was put aside")
        if found is not None:
            self.state = checkpoints.read(
                found, lambda weights: self.method.restore(self.raw, weights),
                self._plain_optimizer(), self.schedule, self.accelerator.scaler,
            )  # fmt: skip
            for key in ("optimizer", "schedule", "scaler", "rng"):
                self.state.pop(key)
            if self.data.stream is not None:
                self.progress.note("reading the rows up to there once more")
                self.data.stream.go_on(self.state["stream"], self.folder.refusals())
            self.progress.note(f"going on from step {self.state['step']} of {self.steps}")
        self.folder.rewind(self.state["step"])

    def train(self) -> Outcome:
        """Take the remaining steps, then leave the model with the weights to keep. Raises Stopped after a signal."""
        start = self.state["step"]
        stopped_early = self._out_of_patience()
        self.progress.train_begins(start, self.steps)
        with watch() as request, fused(self.raw, packed=self.pack is not None):
            if start < self.steps and not stopped_early:
                try:
                    for step in self._fit(start):
                        stopped_early = self._after(step, request)
                        if stopped_early:
                            break
                except DataError:  # a row of a stream: what was trained up to it is kept
                    if self.state["step"] > start:
                        self._save()
                    raise
        self.progress.train_ends()
        return self._finish(stopped_early)

    def _fit(self, start: int) -> Iterator[Step]:
        task = self.data.task
        return fit(
            self.model, self._batches(start), task.loss, task.targets, self.optimizer, self.schedule,
            self.accelerator, clip=self.config.clip, start=start,
            penalty=lambda _: self.method.penalty(self.raw),
            after_step=lambda _, index: self.method.after_step(self.raw, index),
        )  # fmt: skip

    def _batches(self, start: int) -> Iterator[list[Batch]]:
        config, stream = self.config, self.data.stream
        coming = stream.rows() if stream is not None else iter(())
        for index in range(start, self.steps):
            if stream is not None:
                rows = list(islice(coming, config.batch_size))
                self.state["stream"] = stream.state()  # as it is once this step is taken
            else:
                numbers = step_numbers(len(self.data.rows), index, batch_size=config.batch_size, seed=self.seed)
                rows = [self.data.rows[number] for number in numbers]
            cut = micro_batches(
                [len(row.ids) for row in rows], micro_batch=config.rows_per_pass, by_length=config.group_by_length,
                micro_tokens=config.micro_tokens, pack=self.pack,
            )  # fmt: skip
            yield [self._batch([rows[i] for i in micro]) for micro in cut]

    def _batch(self, rows: list[Row]) -> Batch:
        return self.data.task.pack(rows) if self.pack else self.data.task.collate(rows, self.pad_id)

    def _after(self, step: Step, request: StopRequest) -> bool:
        """Log, evaluate and save as the recipe says; True where patience has run out."""
        state, config, last = self.state, self.config, step.index == self.steps
        state["step"] = step.index
        state["seconds"] += step.seconds
        state["tokens"] += step.tokens
        record = {
            "step": step.index, "epoch": round(step.index / self.per_epoch, 4), "loss": step.loss, "lr": step.lr,
            "grad_norm": step.grad_norm, "tokens": step.tokens, "targets": step.targets, "seconds": step.seconds,
        }  # fmt: skip
        self.folder.log(record)
        self.progress.step(record, state["tokens"] / max(state["seconds"], 1e-9))
        better = False
        if self.data.validation_rows and (last or step.index % self._every(config.evaluate_every) == 0):
            better = self._evaluate()
        out_of_patience = self._out_of_patience()
        asked = request.signal is not None
        due = step.index % self._every(config.save_every) == 0
        if due or last or asked or out_of_patience or (better and config.keep_best):
            self._save()
        if asked and not last:
            raise Stopped(f"stopped at step {step.index} of {self.steps}; everything is saved", request.exit_code)
        return out_of_patience

    def _every(self, interval: float | None) -> int:
        """Steps between two occasions: a number of steps, a share of an epoch below 1, or an epoch."""
        if interval is None:
            return self.per_epoch
        return max(1, round(interval * self.per_epoch)) if interval < 1 else round(interval)

    def _evaluate(self) -> bool:
        """Measure the held-out loss; True where it is the lowest so far."""
        began = time.perf_counter()
        loss = held_out_loss(self.raw, self.data, self.pad_id, self.config.rows_per_pass, self.accelerator)
        state = self.state
        better = state["best_loss"] is None or loss < state["best_loss"]
        state["without_gain"] = 0 if better else state["without_gain"] + 1
        if better:
            state["best_loss"], state["best_step"] = loss, state["step"]
        self.folder.log({"step": state["step"], "validation_loss": loss, "seconds": time.perf_counter() - began})
        self.progress.evaluated(state["step"], loss, better)
        return better

    def _out_of_patience(self) -> bool:
        return bool(self.config.patience) and self.state["without_gain"] >= (self.config.patience or 0)

    def _save(self) -> None:
        step = self.state["step"]
        if self.data.stream is not None:
            self.folder.keep_refusals(self.data.refusals)
        checkpoints.write(
            self.folder.checkpoints / _name(step), lambda folder: self.method.save(self.raw, folder, training=True),
            self._plain_optimizer(), self.schedule, self.accelerator.scaler, self.state,
        )  # fmt: skip
        best = _name(self.state["best_step"]) if self.config.keep_best and self.state["best_step"] else None
        checkpoints.rotate(self.folder.checkpoints, self.config.keep, best)
        self.progress.saved(step)

    def _finish(self, stopped_early: bool) -> Outcome:
        state = self.state
        # Measured as it will be used: without the autocast that accelerate put around forward.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        kept_best = bool(self.config.keep_best and state["best_step"] and state["best_step"] != state["step"])
        if kept_best:
            self.method.restore(self.raw, self.folder.checkpoints / _name(state["best_step"]) / "weights")
        return Outcome(
            steps=state["step"], kept_step=state["best_step"] if kept_best else state["step"],
            kept_best=self.config.keep_best and state["best_step"] > 0, stopped_early=stopped_early,
            seconds=state["seconds"], tokens=state["tokens"],
        )  # fmt: skip

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer  # type: ignore[no-any-return]  # accelerate wraps it


def _name(step: int) -> str:
    return f"step-{step:06d}"


def held_out_loss(model: nn.Module, data: Prepared, pad_id: int, batch_size: int, accelerator: Accelerator) -> float:
    """Nats per target over all validation rows."""
    rows, lengths = data.validation_rows, data.validation_rows.lengths
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    total = count = 0.0
    model.eval()
    with torch.inference_mode(), accelerator.autocast():
        for start in range(0, len(rows), batch_size):
            batch = data.task.collate([rows[i] for i in order[start : start + batch_size]], pad_id)
            sums, targets = data.task.losses(model, {k: v.to(accelerator.device) for k, v in batch.items()})
            total += float(sums.sum())
            count += float(targets.sum())
    return total / max(1.0, count)


def weights_bytes(folder: Path) -> int:
    """Bytes of the tuned weights alone."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
