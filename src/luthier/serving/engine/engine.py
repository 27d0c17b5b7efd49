"""The engine: one thread that admits requests, steps every scheduler in turn and delivers the chunks."""

import sys
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import InputError
from luthier.core.events import SILENT, Progress
from luthier.kernels.process import call_apart, give_back_freed_memory, keep_freed_memory
from luthier.recipe.consent import Allow
from luthier.rendering.example import Message
from luthier.serving.engine.decoding import Detokenizer, Sampler, sample, scored
from luthier.serving.engine.models import ServedModel, open_models
from luthier.serving.engine.requests import Chunk, Finish, GenerationRequest, QueueFull, SamplingParams, ScoredToken
from luthier.serving.engine.scheduler import RunningRow, Scheduler
from luthier.serving.engine.sources import refuse_mixture, source_of


@dataclass(slots=True, eq=False, kw_only=True)
class Running(RunningRow):
    """A request that has been admitted to the batch, and its row there."""

    request: GenerationRequest
    model: ServedModel
    sampler: Sampler
    text: Detokenizer
    tokens: int = 0
    logprobs: list[ScoredToken] = field(default_factory=list)


class Engine:
    """Serves several models at once: `rows` requests in a batch, and `waiting` more in the queue."""

    def __init__(self, models: Sequence[ServedModel], *, rows: int = 16, waiting: int = 64) -> None:
        self.models = {model.name: model for model in models}
        self.max_rows, self.max_waiting = rows, waiting
        self.schedulers = list(dict.fromkeys(model.scheduler for model in models))
        self.running: list[Running] = []
        self.waiting: deque[GenerationRequest] = deque()
        self.counts: Counter[str] = Counter()  # Totals since the engine started, as in GET /health
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
        progress: Progress = SILENT,
        allow_code: Allow = False,
        base: str | None = None,
        drop_layers: int = 0,
    ) -> "Engine":
        """Serve the models in these folders (NAME=PATH or PATH). Adapters share one base, `base` if given.

        `drop_layers`: see `source_of`.
        """
        sources = [source_of(each, allow_code, base, drop_layers) for each in given]
        refuse_mixture(sources)
        for caveat in {source.caveat: None for source in sources if source.caveat}:
            progress.warn(caveat)
        models = call_apart(lambda: open_models(sources, progress, dtype=dtype))
        return cls(models, rows=rows, waiting=waiting)

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Queue all requests or none. InputError if one is too long, QueueFull if too many are waiting."""
        for request in requests:
            limit = self.models[request.model].limit
            if len(request.ids) >= limit:
                found = f"the conversation has {len(request.ids)} tokens"
                raise InputError(f"{found}; the model's limit is {limit} with the answer")
        with self.wake:
            if self.closing:
                raise QueueFull("the server is stopping")
            if len(self.waiting) + len(requests) > self.max_waiting + max(0, self.max_rows - len(self.running)):
                raise QueueFull(f"{len(self.waiting)} requests are already waiting: retry in a moment")
            self.waiting.extend(requests)
            self.counts["asked"] += len(requests)
            self.wake.notify()

    def close(self, *, grace: float = 0.0) -> None:
        """Accept no more requests, wait up to `grace` seconds for the current ones, and stop."""
        with self.wake:
            self.closing = True
            self.wake.notify()
        self.thread.join(timeout=grace)
        with self.wake:
            for request in [*self.waiting, *(running.request for running in list(self.running))]:
                request.cancelled.set()
            self.wake.notify()
        self.thread.join()

    def stream(
        self, messages: Sequence[Message], sampling: SamplingParams | None = None, *, tools: str = "", model: str = ""
    ) -> Iterator[str]:
        """Yield the answer's text as it is generated; closing the iterator cancels the request.

        `tools` are the available tools, in the form of Example.tools. The default model is the last one.
        """
        served = self.models[model] if model else next(reversed(self.models.values()))
        ids = served.template.prompt_ids(messages, tools)
        chunks: SimpleQueue[Chunk] = SimpleQueue()
        request = GenerationRequest(served.name, ids, sampling or SamplingParams(), chunks.put)
        self.submit([request])
        try:
            while True:
                chunk = chunks.get()
                if chunk.text:
                    yield chunk.text
                if chunk.finish == "error":
                    raise RuntimeError(chunk.error)
                if chunk.finish is not None:
                    return
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
            sampler = Sampler(request.sampling)
            text = Detokenizer(model.template.tokenizer, request.sampling.stop)
            running = Running(request.ids, model.prefix, request=request, model=model, sampler=sampler, text=text)
            self.running.append(running)
            self.counts["prompt_tokens"] += len(request.ids)
            try:
                model.scheduler.admit(running)
            except Exception as error:  # out of memory for a trained prefix
                self._fail(model.scheduler, error)

    def _step(self, scheduler: Scheduler) -> None:
        for running in [each for each in self.running if each.model.scheduler is scheduler]:
            if running.request.cancelled.is_set():
                self._finish(running, "cancelled")
        if prefilled := scheduler.prefill():
            self._sample([row for row, _ in prefilled], torch.stack([logits for _, logits in prefilled]))
        if scheduler.count:
            self._sample(scheduler.ready, scheduler.decode())

    def _sample(self, rows: Sequence[Any], logits: Tensor) -> None:
        """Sample the next token of each row, which is a Running, from logits [rows, vocabulary]."""
        tokens = sample(logits, [row.sampler for row in rows])
        for row, token, own in zip(rows, tokens, logits, strict=True):
            sampling = row.request.sampling
            row.token = token
            row.tokens += 1
            self.counts["completion_tokens"] += 1
            ended = token in row.model.template.end_ids and not sampling.ignore_eos
            if sampling.logprobs is not None and not ended:
                row.logprobs.append(scored(own, token, sampling.logprobs))
            text = "" if ended else row.text.add(token)
            if ended or row.text.stopped:
                self._finish(row, "stop", text)
            elif row.tokens >= min(sampling.max_tokens, row.model.limit - len(row.ids)):
                self._finish(row, "length", text)
            elif text or row.logprobs:
                row.request.deliver(self._chunk(row, text))

    def _chunk(self, running: Running, text: str, finish: Finish | None = None, error: str = "") -> Chunk:
        logprobs, running.logprobs = tuple(running.logprobs), []
        return Chunk(text, running.tokens, logprobs, finish, error)

    def _finish(self, running: Running, finish: Finish, text: str = "") -> None:
        running.model.scheduler.evict(running)
        self.running.remove(running)
        rest = "" if finish == "cancelled" else running.text.finish()
        self._deliver_last(running.request, self._chunk(running, text + rest, finish))

    def _deliver_last(self, request: GenerationRequest, chunk: Chunk) -> None:
        self.counts[{"cancelled": "cancelled", "error": "failed"}.get(chunk.finish or "", "finished")] += 1
        request.deliver(chunk)

    def _fail(self, scheduler: Scheduler, error: Exception) -> None:
        """Log the error and end all requests of a scheduler, whose rows may be in any state."""
        traceback.print_exception(error, file=sys.stderr)
        scheduler.clear()
        message = f"the model failed on this batch ({type(error).__name__})"
        for running in [each for each in self.running if each.model.scheduler is scheduler]:
            self.running.remove(running)
            self._deliver_last(running.request, self._chunk(running, "", "error", message))
