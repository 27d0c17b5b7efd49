"""The trainer: the policies around the loop. When to log, evaluate, save, keep and stop.

`state` is always that of the last whole step, and so are weights, optimizer and random states whenever something stops
the run between two steps or inside one: a step that is broken off is as if it had never begun.
"""

import gc
import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from statistics import median
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from luthier.core.errors import DataError, Diverged, InputError, OutOfMemory, Stopped
from luthier.core.events import Progress
from luthier.core.files import checkpoint_name, fault
from luthier.core.ranks import here
from luthier.core.resources import is_out_of_memory
from luthier.core.signals import NOTED, Interrupted, StopRequest
from luthier.core.strict_json import number
from luthier.data.batches import dealt, step_numbers, steps_per_epoch
from luthier.data.prepared import Prepared
from luthier.methods.base import Method
from luthier.rendering.row import Row
from luthier.runs.folder import RunFolder
from luthier.training import checkpoint as checkpoints
from luthier.training.checkpoint import put_back, random_state
from luthier.training.settings import RunSettings
from luthier.training.step import Halted, RanOut
from luthier.training.tuned import TunedModel, held_out_loss

IN_A_ROW = 5
"""So many steps in a row without a finite loss stop a run that would leave them out."""
IN_A_ROW_SCALED = 40
"""The same with fp16, whose scaler leaves steps out until it has found its scale: 2^16 halved to far below 1."""

WINDOW, FEWEST = 50, 20
"""A spike is judged by the losses of the last 50 steps, once there are 20."""
TIMES, SPREADS = 2.0, 10.0
"""A spike is above twice their median, and above it by ten times their median distance from it."""
ELSEWHERE = "a lower train.lr, train.clip=1.0, or train.precision=bf16 or fp32, in another folder: run=DIR"


class Trainer:
    """Model, data and optimizer of one run, and what has happened so far."""

    def __init__(
        self,
        model: nn.Module,
        data: Prepared,
        method: Method,
        settings: RunSettings,
        accelerator: Accelerator,
        pad_id: int,
        folder: RunFolder,
        progress: Progress,
        of_base: Collection[nn.Parameter] = (),
    ) -> None:
        """`of_base` are the parameters that the base had before the method."""
        self.data, self.method, self.settings, self.pad_id = data, method, settings, pad_id
        self.accelerator, self.folder, self.progress = accelerator, folder, progress
        self.config, self.pack, self.steps = settings.train, settings.pack, settings.steps
        # The length of a stream's epoch is unknown: intervals are shares of the run there.
        self.per_epoch = self.steps if data.stream else steps_per_epoch(len(data.rows), self.config.batch_size)
        longest = max(data.rows.lengths) if data.stream is None else None
        how = data.task, method, settings, accelerator, pad_id, longest, of_base
        self.ranks, self.tuned = here(), TunedModel(model, *how)
        self.raw, self.loop, self.cutter = model, self.tuned.loop, self.tuned.cutter
        self.optimizer, self.schedule, self.advanced = self.loop.optimizer, self.loop.schedule, self.tuned.advanced
        self.request, self.process = StopRequest(), psutil.Process()
        self.saved: tuple[int, bool] | None = None
        self.ruined = False
        self.state: dict[str, Any] = {"step": 0, "best_step": 0, "best_loss": None, "without_gain": 0, "seconds": 0.0}
        self.state |= {"tokens": 0, "unmeasured": False}  # the evaluation that belongs to this step is still to come
        self.state |= {"halvings": 0, "skipped": 0, "skipped_in_a_row": 0, "spikes": 0, "recent": []}

    def resume(self) -> None:
        """Resume from the newest whole checkpoint, if there is one."""
        found, broken = checkpoints.newest(self.folder.checkpoints, self.folder.ledger.run)
        for what in broken:
            self.progress.warn(what)
        if found is not None:
            self.ranks.order("restore", found)
            self.state |= checkpoints.read_checkpoint(found, self.tuned.restore, self.advanced)
            self._refuse_ruin(f"they lie in {found}; remove it to resume before it")
            if self.data.stream is not None:
                self.progress.note("reading the rows up to there once more")
                self.data.stream.go_on(self.state["stream"], self.folder.refusals())
            self.progress.note(f"resuming from step {self.state['step']} of {self.steps}")
            self._rotate()  # a kill may have come between a checkpoint and its rotation
        else:
            self._begin()
        self.tuned.compare_weights()
        self.saved = (self.state["step"], self.state["unmeasured"])
        if lost := self.folder.rewind(self.state["step"], measured=not self.state["unmeasured"]):
            self.progress.warn(f"{self.folder.metrics}: the lines of {lost} steps are lost")

    def _begin(self) -> None:
        """Let the method look at the first rows of the run; torch's random state stays as it was."""
        if not (count := min(self.method.starts_from, len(self.data.rows))):
            return
        self.progress.stage(f"looking at {count} rows to start the adapter")
        before = random_state()
        numbers = step_numbers(len(self.data.rows), 0, batch_size=count, seed=self.settings.seed)
        self.tuned.begin_on_all([self.data.rows[number] for number in numbers])
        put_back(before)

    def train(self, request: StopRequest) -> dict[str, Any]:
        """Take the remaining steps, leave the model with the weights to keep, and return the lines of result.json.

        Raises Stopped after a signal, and what ends a run (DataError, Diverged, OutOfMemory), all with the last whole
        step saved, unless it ruined the weights: then the last checkpoint stays the newest.
        """
        self.request, state, stream = request, self.state, self.data.stream
        self.progress.train_begins(state["step"], self.steps)
        rng = random_state()
        with self.request.noted(), self.tuned.training():
            put_back(rng)  # a trial of a layer may draw, and a resumed run makes it at another step
            coming = stream.rows() if stream is not None else iter(())
            try:
                if state["unmeasured"]:
                    self._measure_and_save()
                while state["step"] < self.steps and not self._out_of_patience():
                    self._log(self._step(self._next_rows(coming)))
                    if stream is not None:
                        state["stream"] = stream.state()
                    self._measure_and_save()
            except (DataError, Diverged, OutOfMemory):
                self._save()
                raise
            except Halted:
                self._save()
                what = f"stopped at step {state['step']} of {self.steps}; everything is saved"
                raise Stopped(what, self.request.exit_code or NOTED) from None  # of another rank alone
        self.progress.train_ends()
        return self._finish()

    def _next_rows(self, coming: Iterator[Row]) -> list[Row]:
        """The rows of the next step; those of a stream may let us wait. Raises Halted after a signal."""
        if self.request.asked:
            raise Halted
        try:
            with self.request.at_once() if self.data.stream is not None else nullcontext():
                return self.rows_of(self.state["step"], coming)
        except Interrupted:
            raise Halted from None

    def rows_of(self, step: int, coming: Iterator[Row]) -> list[Row]:
        """The rows of the step after `step`; of a stream the next ones that are `coming`."""
        size = self.config.batch_size
        if self.data.stream is not None:
            return list(islice(coming, size))
        numbers = step_numbers(len(self.data.rows), step, batch_size=size, seed=self.settings.seed)
        return [self.data.rows[number] for number in numbers]

    def _step(self, rows: list[Row]) -> dict[str, Any]:
        """Take the next step, or leave it out; returns its line of metrics.jsonl. Where it raises, nothing changed."""
        state, began, before = self.state, time.perf_counter(), random_state()
        index, found = state["step"] + 1, None
        self.method.before_step(self.raw, index, self.settings.seed)
        try:
            while found is None:
                parts = self._dealt(index, rows)
                try:
                    found = self.loop.gradient(
                        self.cutter.collated(parts), lambda: self.request.asked, self.tuned.spare(rows[:1])
                    )
                except (RuntimeError, MemoryError, RanOut) as error:
                    if not isinstance(error, RanOut) and not is_out_of_memory(error):
                        raise
                if found is None:  # behind the except, whose traceback holds on to the step's tensors
                    put_back(before)
                    self._halve(smallest=max(map(len, parts)) == 1)
            scaled = self.accelerator.scaler is not None and math.isfinite(found.loss)
            in_a_row = 0 if found.finite else state["skipped_in_a_row"] + 1
            skips = self.config.on_nan == "skip"
            most = IN_A_ROW_SCALED if scaled else IN_A_ROW if skips else 1
            if in_a_row >= most:
                what = f"step {index}: the loss is {found.loss}, the gradient norm {found.norm}; the step was not taken"
                if skips or scaled:
                    raise Diverged(f"{what}, nor were the {in_a_row - 1} before it", fix=ELSEWHERE)
                raise Diverged(what, fix=f"train.on_nan=skip resumes here without such steps; or {ELSEWHERE}")
        except BaseException:
            put_back(before)
            self.optimizer.zero_grad(set_to_none=True)
            raise
        lr = float(self.schedule.get_last_lr()[0])
        try:
            leave_out = not found.finite and not scaled
            self.ranks.order("take", index, leave_out)
            taken = self.loop.take(index, leave_out=leave_out)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = f"step {index}: out of memory in the optimizer ({self.config.optimizer}), whose states do not fit"
            smaller = "train.optimizer=adamw_8bit or sgd, or a method with fewer trainable parameters"
            fix = f"in another folder (run=DIR): {smaller} (luthier list methods)"
            raise InputError(message, fix=fix) from error  # no OutOfMemory: weights may have moved, nothing is saved
        state["step"], state["skipped_in_a_row"] = index, in_a_row
        record = {"step": index, "epoch": round(index / self.per_epoch, 4), "loss": number(found.loss), "lr": lr}
        record |= {"grad_norm": number(found.norm), "tokens": found.tokens, "targets": found.targets}
        record |= {"seconds": time.perf_counter() - began, "time": time.time()}
        if not taken:
            state["skipped"] += 1
            self.progress.warn(f"step {index} was left out: loss {found.loss}, gradient norm {found.norm}")
            record["skipped"] = True
        return record

    def _dealt(self, index: int, rows: Sequence[Row]) -> list[list[Row]]:
        """Give each rank its rows of step `index`; returns the micro-batches of this one."""
        halvings, shares = self.state["halvings"], dealt([len(row.ids) for row in rows], self.ranks.world)
        given = [(index, halvings, [rows[i] for i in share], rows[:1]) for share in shares]
        return self.cutter.cut(self.ranks.share("gradient", given)[2], halvings)

    def _rows_per_pass(self) -> int:
        return self.cutter.rows_per_pass(self.state["halvings"])

    def _halve(self, *, smallest: bool) -> None:
        """After memory ran out: half as much in a pass from now on. OutOfMemory where it was the `smallest` pass."""
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        when = f"out of memory after step {self.state['step']}"
        if smallest:
            smaller = "train.gradient_checkpointing=true, a smaller train.max_length, a base in 4 bit (method=qlora)"
            fix = f"in another folder (run=DIR): {smaller}, or a method with fewer trainable parameters"
            raise OutOfMemory(f"{when}, with one row in a pass; everything up to there is saved", fix=fix)
        self.state["halvings"] += 1
        size = f"{self.pack >> self.state['halvings']} tokens" if self.pack else f"{self._rows_per_pass()} rows"
        same = "the run stays the same except for rounding and dropout"
        self.progress.warn(f"{when}: from now on at most {size} in a pass ({same})")

    def _log(self, record: dict[str, Any]) -> None:
        """Count a step, look at its loss, and write it down."""
        state, loss = self.state, record["loss"]
        state["seconds"] += record["seconds"]
        state["tokens"] += record["tokens"]
        if loss is not None:
            if (middle := spike(state["recent"], loss)) is not None:
                state["spikes"] += 1
                record["spike"] = True
                self.progress.warn(f"step {record['step']}: the loss is {loss:.4g}, where {middle:.4g} was usual")
            state["recent"] = [*state["recent"], loss][-WINDOW:]
        state["unmeasured"] = bool(self.data.validation_rows) and self._due(self.config.evaluate_every)
        record["memory"] = self.process.memory_info().rss
        if self.accelerator.device.type == "cuda":
            record["device_memory"] = torch.cuda.memory_allocated()
        self.folder.log(record)
        self.progress.record(record)
        self.progress.step(record, state["tokens"] / max(state["seconds"], 1e-9))

    def _measure_and_save(self) -> None:
        """Evaluate and save as the recipe says. Raises Halted where a signal comes before all is measured."""
        state, config = self.state, self.config
        better = self._evaluate() if state["unmeasured"] else False
        if self._due(config.save_every) or self._out_of_patience() or (better and config.keep_best):
            self._save()

    def _due(self, interval: float | None) -> bool:
        """True at the last step and after each `interval`: steps, or a share of an epoch below 1; None is an epoch."""
        interval = self.per_epoch if interval is None else interval
        every = round(interval) if interval >= 1 else max(1, round(interval * self.per_epoch))
        return bool(self.state["step"] == self.steps or self.state["step"] % every == 0)

    def _evaluate(self) -> bool:
        """Measure the held-out loss; True where it is the lowest so far."""
        began, state, loss = time.perf_counter(), self.state, None
        while loss is None:
            rows, halt = self._rows_per_pass(), lambda: self.request.asked
            try:
                held_out = self.data.validation_rows
                loss = held_out_loss(self.tuned, held_out, rows, halt)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if loss is None:  # behind the except, as for a step
                self._halve(smallest=rows == 1)
        better = math.isfinite(loss) and (state["best_loss"] is None or loss < state["best_loss"])
        state["without_gain"] = 0 if better else state["without_gain"] + 1
        if better:
            state["best_loss"], state["best_step"] = loss, state["step"]
        state["unmeasured"] = False
        record = {"step": state["step"], "validation_loss": number(loss)}
        record |= {"seconds": time.perf_counter() - began, "time": time.time()}
        self.folder.log(record)
        self.progress.record(record)
        self.progress.evaluated(state["step"], loss, better)
        last = state["step"] == self.steps or self._out_of_patience()
        best, skips = self.config.keep_best and state["best_step"] > 0, self.config.on_nan == "skip"
        self._refuse_ruin()
        if not math.isfinite(loss) and not (skips and (best or not last)):
            self.ruined = True
            again = "" if skips or last else "train.on_nan=skip resumes here without such evaluations; or "
            what = f"step {state['step']}: the held-out loss is {loss}, with finite weights: a forward pass overflows"
            raise Diverged(f"{what}; {self._kept()}", fix=again + ELSEWHERE)
        return better

    def _out_of_patience(self) -> bool:
        return bool(self.config.patience) and self.state["without_gain"] >= (self.config.patience or 0)

    def _save(self) -> None:
        """Write a checkpoint of the last whole step, unless there is one, or nothing to keep."""
        step = self.state["step"]
        if self.ruined or self.saved == (step, self.state["unmeasured"]):
            return
        self._refuse_ruin()
        if self.data.stream is not None:
            self.folder.keep_refusals(self.data.refusals)
        self.folder.sync_metrics()
        target, run = self.folder.checkpoints / checkpoint_name(step), self.folder.ledger.run
        checkpoints.write_checkpoint(target, self.tuned.save, self.advanced, self.state, run)
        self._rotate()
        self.saved = (step, self.state["unmeasured"])
        self.progress.saved(step)

    def _refuse_ruin(self, kept: str = "") -> None:
        """Raise Diverged, and save nothing more, where the last step left weights that are not finite."""
        if name := self.tuned.ruined_on_any():
            self.ruined = True
            what = f"step {self.state['step']} left NaN or infinite weights, among them {name}"
            raise Diverged(f"{what}; {kept or self._kept()}", fix=ELSEWHERE)

    def _kept(self) -> str:
        """Where the weights before a ruined step are."""
        step = self.saved[0] if self.saved else 0
        return f"{self.folder.checkpoints / checkpoint_name(step)} holds those before" if step else "nothing was saved"

    def _rotate(self) -> None:
        best = checkpoint_name(self.state["best_step"]) if self.config.keep_best and self.state["best_step"] else None
        checkpoints.rotate(self.folder.checkpoints, self.config.keep, best)

    def _finish(self) -> dict[str, Any]:
        state = self.state
        best = state["best_step"] if self.config.keep_best else 0
        if best not in (0, state["step"]):
            checkpoint = self.folder.checkpoints / checkpoint_name(best)
            if what := fault(checkpoint, run=self.folder.ledger.run):
                best = 0
                self.progress.warn(f"{checkpoint}, the best one, is damaged ({what}): the last weights are kept")
            else:
                self.ranks.order("weights", checkpoint / "weights")
                self.tuned.restore(checkpoint / "weights")
        result = {"steps": state["step"], "kept_step": best or state["step"], "kept_best": best > 0}
        result |= {"stopped_early": self._out_of_patience(), "train_seconds": state["seconds"]}
        result |= {"skipped_steps": state["skipped"], "loss_spikes": state["spikes"]}  # skipped: not finite
        result["rows_per_pass"] = self._rows_per_pass()  # fewer than the recipe's where memory ran out
        return result | {"tokens": state["tokens"], "tokens_per_second": state["tokens"] / max(state["seconds"], 1e-9)}


def spike(recent: Sequence[float], loss: float) -> float | None:
    """The median of `recent` where `loss` is far above it, else None."""
    if len(recent) < FEWEST:
        return None
    middle = median(recent)
    spread = median(abs(each - middle) for each in recent)
    return middle if loss > TIMES * middle and loss > middle + SPREADS * spread else None
