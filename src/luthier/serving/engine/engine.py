"""The engine: one thread that admits requests, steps every scheduler in turn and delivers the chunks."""

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
from luthier.kernels.process import call_apart, give_back_freed_memory, keep_freed_memory
from luthier.recipe.consent import Allow
from luthier.rendering.example import Message
from luthier.serving.engine.detokenizer import Detokenizer
from luthier.serving.engine.models import ServedModel, open_models
from luthier.serving.engine.requests import Chunk, Finish, GenerationRequest, QueueFull, SamplingParams, ScoredToken
from luthier.serving.engine.sampling import Sampler, sample, scored
from luthier.serving.engine.scheduler import RunningRow, Scheduler
from luthier.serving.engine.sources import base_of_sources, refuse_equal_names, refuse_two_bases, source_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True, eq=False)
class Running:
    """A request that has been admitted to the batch."""

    request: GenerationRequest
    model: ServedModel
    row: RunningRow
    sampler: Sampler
    text: Detokenizer
    tokens: int = 0
    logprobs: list[ScoredToken] = field(default_factory=list)


@dataclass(slots=True)
class Counts:
    """Totals since the engine started."""

    asked: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Engine:
    """Serves several models at once: `rows` requests in a batch, and `waiting` more in the queue."""

    def __init__(self, models: Sequence[ServedModel], *, rows: int = 16, waiting: int = 64) -> None:
        self.models = {model.name: model for model in models}
        self.max_rows, self.max_waiting = rows, waiting
        self.schedulers = list(dict.fromkeys(model.scheduler for model in models))
        self.running: dict[RunningRow, Running] = {}
        self.waiting: deque[GenerationRequest] = deque()
        self.counts = Counts()
        self.closing = False
        give_back_freed_memory()  # left over from loading
        keep_freed_memory()  # every step allocates the same sizes again
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
    ) -> "Engine":
        """Serve the models in these folders (NAME=PATH or PATH); adapters share one base."""
        sources = [source_of(each, allow_code) for each in given]
        refuse_two_bases(sources)
        refuse_equal_names(sources)
        models = call_apart(lambda: open_models(sources, progress or Progress(), dtype=dtype))
        return cls(models, rows=rows, waiting=waiting)

    @classmethod
    def load(cls, path: Path, *, base: bool = False, allow_code: Allow = False) -> "Engine":
        """Load one run, adapter or model; with `base`, the base model of an adapter."""
        source = source_of(str(path), allow_code)
        if base:
            if source.load is None:
                raise InputError(
                    f"{path} holds full weights: its base is another model", fix="chat with the base itself"
                )
            source = base_of_sources(source)
        return cls(call_apart(lambda: open_models([source], Progress()))[-1:], rows=1)

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Queue all requests or none. InputError if one is too long, QueueFull if too many are waiting."""
        for request in requests:
            limit = self.models[request.model].limit
            if len(request.ids) >= limit:
                raise InputError(
                    f"the conversation has {len(request.ids)} tokens; the model's limit is {limit} with the answer"
                )
        with self.wake:
            if self.closing:
                raise QueueFull("the server is stopping")
            if len(self.waiting) + len(requests) > self.max_waiting + max(0, self.max_rows - len(self.running)):
                raise QueueFull(f"{len(self.waiting)} requests are already waiting: retry in a moment")
            self.waiting.extend(requests)
            self.counts.asked += len(requests)
            self.wake.notify()

    def close(self, *, grace: float = 0.0) -> None:
        """Accept no more requests, wait up to `grace` seconds for the current ones, and stop."""
        with self.wake:
            self.closing = True
            self.wake.notify()
        self.thread.join(timeout=grace)
        with self.wake:
            for request in [*self.waiting, *(running.request for running in list(self.running.values()))]:
                request.cancelled.set()
            self.wake.notify()
        self.thread.join()

    def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: str = "",
        sampling: SamplingParams | None = None,
        model: str | None = None,
    ) -> Iterator[str]:
        """Yield the answer's text as it is generated; closing the iterator cancels the request.

        `tools` are the available tools, in the form of Example.tools.
        """
        served = self.models[model] if model else next(iter(self.models.values()))
        ids = served.template.prompt_ids(messages, tools)
        chunks: SimpleQueue[Chunk] = SimpleQueue()
        request = GenerationRequest(served.name, ids, sampling or SamplingParams(), chunks.put)
        self.submit([request])
        try:
            finish = None
            while finish is None:
                chunk = chunks.get()
                finish = chunk.finish
                if chunk.text:
                    yield chunk.text
                if finish == "error":
                    raise RuntimeError(chunk.error)
        finally:
            request.cancelled.set()

    def _work(self) -> None:
        with torch.inference_mode():
            while True:
                with self.wake:
                    while not (self.waiting or self.running or self.closing):
                        self.wake.wait()
                    if not (self.waiting or self.running):
                        return
                    self._admit()
                for scheduler in self.schedulers:
                    try:
                        self._step(scheduler)
                    except Exception as error:  # a failure of one model must not affect the others
                        self._fail(scheduler, error)

    def _admit(self) -> None:
        for request in [request for request in self.waiting if request.cancelled.is_set()]:
            self.waiting.remove(request)
            self._deliver_last(request, Chunk("", 0, finish="cancelled"))
        while self.waiting and len(self.running) < self.max_rows:
            request = self.waiting.popleft()
            model = self.models[request.model]
            row = RunningRow(request.ids, model.prefix)
            text = Detokenizer(model.template.tokenizer, request.sampling.stop)
            self.running[row] = Running(request, model, row, Sampler(request.sampling), text)
            self.counts.prompt_tokens += len(request.ids)
            try:
                model.scheduler.admit(row)
            except Exception as error:  # out of memory for a trained prefix
                self._fail(model.scheduler, error)

    def _step(self, scheduler: Scheduler) -> None:
        for row in [row for row in scheduler.rows if self.running[row].request.cancelled.is_set()]:
            self._finish(self.running[row], "cancelled")
        if not scheduler.rows:
            return
        if prefilled := scheduler.prefill():
            self._sample([row for row, _ in prefilled], torch.stack([logits for _, logits in prefilled]))
        if scheduler.count:
            self._sample(scheduler.ready, scheduler.decode())

    def _sample(self, rows: Sequence[RunningRow], logits: "Tensor") -> None:
        """Sample the next token of each row from logits [rows, vocabulary]."""
        running = [self.running[row] for row in rows]
        tokens = sample(logits, [each.sampler for each in running])
        for each, token, own in zip(running, tokens, logits, strict=True):
            self._add(each, token, own)

    def _add(self, running: Running, token: int, logits: "Tensor") -> None:
        sampling, row = running.request.sampling, running.row
        row.token = token
        running.tokens += 1
        self.counts.completion_tokens += 1
        ended = token in running.model.template.end_ids and not sampling.ignore_eos
        if sampling.logprobs is not None and not ended:
            running.logprobs.append(scored(logits, token, sampling.logprobs))
        text = "" if ended else running.text.add(token)
        if ended or running.text.stopped:
            self._finish(running, "stop", text)
        elif running.tokens >= sampling.max_tokens or row.total + running.tokens >= (
            running.model.limit + row.prefix.virtual_tokens
        ):
            self._finish(running, "length", text)
        elif text or running.logprobs:
            running.request.deliver(self._chunk(running, text))

    def _chunk(self, running: Running, text: str, finish: Finish | None = None, error: str = "") -> Chunk:
        logprobs, running.logprobs = tuple(running.logprobs), []
        return Chunk(text, running.tokens, logprobs, finish, error)

    def _finish(self, running: Running, finish: Finish, text: str = "") -> None:
        running.model.scheduler.evict(running.row)
        del self.running[running.row]
        rest = "" if finish == "cancelled" else running.text.finish()
        self._deliver_last(running.request, self._chunk(running, text + rest, finish))

    def _deliver_last(self, request: GenerationRequest, chunk: Chunk) -> None:
        if chunk.finish == "cancelled":
            self.counts.cancelled += 1
        elif chunk.finish == "error":
            self.counts.failed += 1
        else:
            self.counts.finished += 1
        request.deliver(chunk)

    def _fail(self, scheduler: Scheduler, error: Exception) -> None:
        """Log the error and end all requests of a scheduler, whose rows may be in any state."""
        traceback.print_exception(error, file=sys.stderr)
        rows = list(scheduler.rows)
        scheduler.clear()
        for row in rows:
            if (running := self.running.pop(row, None)) is not None:
                message = f"the model failed on this batch ({type(error).__name__})"
                self._deliver_last(running.request, self._chunk(running, "", "error", message))
