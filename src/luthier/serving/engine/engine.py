"""The thread that computes: it lets questions in, steps all lanes in turn, and hands out what they say."""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Thread
from typing import TYPE_CHECKING

import torch

from luthier.core.errors import InputError
from luthier.core.events import Progress
from luthier.kernels.allocator import give_back_freed_memory, keep_freed_memory
from luthier.kernels.threads import call_apart
from luthier.recipe.consent import Allow
from luthier.rendering.example import Message
from luthier.serving.engine.detokenizer import Text
from luthier.serving.engine.models import Variant, open_variants
from luthier.serving.engine.requests import Ask, Finish, Piece, QueueFull, Sampling, Scored
from luthier.serving.engine.sampling import Drawer, draw, scored
from luthier.serving.engine.scheduler import Lane, Row
from luthier.serving.engine.sources import base_of, refuse_equal_names, refuse_two_bases, source_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True, eq=False)
class Job:
    """A question at work."""

    ask: Ask
    variant: Variant
    row: Row
    drawer: Drawer
    text: Text
    made: int = 0
    kept: list[Scored] = field(default_factory=list)


@dataclass(slots=True)
class Counts:
    """What the engine has done so far."""

    asked: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    tokens: int = 0


class Engine:
    """Answers questions to several models at once; `rows` of them in one step, and `waiting` behind them."""

    def __init__(self, variants: Sequence[Variant], *, rows: int = 16, waiting: int = 64) -> None:
        self.variants = {variant.name: variant for variant in variants}
        self.most_rows, self.most_waiting = rows, waiting
        self.lanes = list(dict.fromkeys(variant.lane for variant in variants))
        self.jobs: dict[Row, Job] = {}
        self.waiting: deque[Ask] = deque()
        self.counts = Counts()
        self.closing = False
        give_back_freed_memory()  # what opening has left
        keep_freed_memory()  # a step asks for the same sizes as the one before
        self.wake = Condition()
        self.thread = Thread(target=self._work, daemon=True, name="luthier-engine")
        self.thread.start()

    @classmethod
    def open(
        cls,
        given: Sequence[str],
        *,
        rows: int = 16,
        waiting: int = 64,
        dtype: str = "auto",
        progress: Progress | None = None,
        allow_code: Allow = False,
    ) -> Engine:
        """Serve what lies in these folders (NAME=PATH or PATH), adapters over one base."""
        sources = [source_of(each, allow_code) for each in given]
        refuse_two_bases(sources)
        refuse_equal_names(sources)
        variants = call_apart(lambda: open_variants(sources, progress or Progress(), dtype=dtype))
        return cls(variants, rows=rows, waiting=waiting)

    @classmethod
    def load(cls, path: Path, *, base: bool = False, allow_code: Allow = False) -> Engine:
        """One run, adapter or model; with `base` the model that an adapter starts from."""
        source = source_of(str(path), allow_code)
        if base and source.load is None:
            raise InputError(f"{path} holds whole weights: its base is another model", fix="chat with the base itself")
        if base:
            source = base_of(source)
        return cls(call_apart(lambda: open_variants([source], Progress()))[-1:], rows=1)

    def submit(self, asks: Sequence[Ask]) -> None:
        """Let questions in, all or none. InputError where one is too long, QueueFull where too many wait."""
        for ask in asks:
            limit = self.variants[ask.model].limit
            if len(ask.ids) >= limit:
                raise InputError(f"the dialogue has {len(ask.ids)} tokens, and the model takes {limit} with the answer")
        with self.wake:
            if self.closing:
                raise QueueFull("the server is stopping")
            if len(self.waiting) + len(asks) > self.most_waiting + max(0, self.most_rows - len(self.jobs)):
                raise QueueFull(f"{len(self.waiting)} requests wait already: ask again in a moment")
            self.waiting.extend(asks)
            self.counts.asked += len(asks)
            self.wake.notify()

    def close(self, *, patience: float = 0.0) -> None:
        """Take no more, finish what is there within `patience` seconds, and stop."""
        with self.wake:
            self.closing = True
            self.wake.notify()
        self.thread.join(timeout=patience)
        with self.wake:
            for ask in [*self.waiting, *(job.ask for job in list(self.jobs.values()))]:
                ask.cancel()
            self.wake.notify()
        self.thread.join()

    def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: str = "",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        model: str | None = None,
    ) -> Iterator[str]:
        """The answer piece by piece; temperature 0 takes the likeliest token. Leaving the loop stops the work.

        `tools` are those on offer, as Example.tools has them.
        """
        variant = self.variants[model] if model else next(iter(self.variants.values()))
        ids = variant.template.prompt_ids(messages, tools)
        pieces: SimpleQueue[Piece] = SimpleQueue()
        sampling = Sampling(temperature=temperature, seed=seed, most=max_new_tokens)
        ask = Ask(variant.name, ids, sampling, pieces.put)
        self.submit([ask])
        try:
            while True:
                piece = pieces.get()
                if piece.text:
                    yield piece.text
                if piece.finish == "error":
                    raise RuntimeError(piece.error)
                if piece.finish is not None:
                    return
        finally:
            ask.cancel()

    def _work(self) -> None:
        with torch.inference_mode():
            while True:
                with self.wake:
                    while not (self.waiting or self.jobs or self.closing):
                        self.wake.wait()
                    if self.closing and not self.waiting and not self.jobs:
                        return
                    self._let_in()
                for lane in self.lanes:
                    try:
                        self._step(lane)
                    except Exception as error:  # one lane's fault must not end the others'
                        traceback.print_exc(file=sys.stderr)
                        self._fail(lane, error)

    def _let_in(self) -> None:
        for ask in [ask for ask in self.waiting if ask.cancelled.is_set()]:
            self.waiting.remove(ask)
            self._deliver_end(ask, 0, "cancelled")
        while self.waiting and len(self.jobs) < self.most_rows:
            ask = self.waiting.popleft()
            variant = self.variants[ask.model]
            row = Row(ask.ids, variant.start)
            tokenizer = variant.template.tokenizer
            self.jobs[row] = Job(ask, variant, row, Drawer(ask.sampling), Text(tokenizer, ask.sampling.stop))
            self.counts.prompt_tokens += len(ask.ids)
            try:
                variant.lane.take(row)
            except Exception as error:  # no memory for its trained keys
                traceback.print_exc(file=sys.stderr)
                self._fail(variant.lane, error)

    def _step(self, lane: Lane) -> None:
        for row in [row for row in lane.rows if self.jobs[row].ask.cancelled.is_set()]:
            self._end(self.jobs[row], "cancelled")
        if not lane.rows:
            return
        fed = lane.feed()
        if fed:
            self._said([row for row, _ in fed], torch.stack([logits for _, logits in fed]))
        if lane.count:
            self._said(lane.ready, lane.step())

    def _said(self, rows: Sequence[Row], logits: Tensor) -> None:
        """The next token of each row, from its logits [rows, vocabulary]."""
        jobs = [self.jobs[row] for row in rows]
        for job, token, own in zip(jobs, draw(logits, [job.drawer for job in jobs]), logits, strict=True):
            self._took(job, token, own)

    def _took(self, job: Job, token: int, logits: Tensor) -> None:
        sampling = job.ask.sampling
        job.row.token = token
        job.made += 1
        self.counts.tokens += 1
        ended = token in job.variant.template.end_ids and not sampling.ignore_end
        if sampling.logprobs is not None and not ended:
            job.kept.append(scored(logits, token, sampling.logprobs))
        text = "" if ended else job.text.add(token)
        if ended or job.text.stopped:
            self._end(job, "stop", text)
        elif job.made >= sampling.most or job.row.whole + job.made >= job.variant.limit + job.row.start.virtual:
            self._end(job, "length", text)
        elif text or job.kept:
            job.ask.deliver(Piece(text, job.made, self._scores(job)))

    def _scores(self, job: Job) -> tuple[Scored, ...]:
        kept, job.kept = tuple(job.kept), []
        return kept

    def _end(self, job: Job, finish: Finish, text: str = "") -> None:
        job.variant.lane.drop(job.row)
        del self.jobs[job.row]
        rest = "" if finish == "cancelled" else job.text.end()
        self._deliver_end(job.ask, job.made, finish, text + rest, self._scores(job))

    def _deliver_end(
        self, ask: Ask, made: int, finish: Finish, text: str = "", kept: tuple[Scored, ...] = (), error: str = ""
    ) -> None:
        match finish:
            case "cancelled":
                self.counts.cancelled += 1
            case "error":
                self.counts.failed += 1
            case _:
                self.counts.finished += 1
        ask.deliver(Piece(text, made, kept, finish, error))

    def _fail(self, lane: Lane, error: Exception) -> None:
        """End all answers of a lane, whose rows may be in any state."""
        rows = list(lane.rows)
        lane.clear()
        for row in rows:
            if (job := self.jobs.pop(row, None)) is not None:
                message = f"the model failed on this batch ({type(error).__name__})"
                self._deliver_end(job.ask, job.made, "error", "", self._scores(job), message)
