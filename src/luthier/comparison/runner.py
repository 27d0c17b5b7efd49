"""What all runs of a comparison share, how long each of them is, and how they are run side by side."""

import copy
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import nn

from luthier.comparison import workers
from luthier.comparison.candidates import Variant
from luthier.comparison.latency import latency
from luthier.core.errors import InputError, Stopped
from luthier.core.events import Progress
from luthier.core.files import write_json
from luthier.core.units import duration
from luthier.kernels.process import processors
from luthier.pipeline.prepare import Encoding, Loaded, SharedInputs, load_base
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """Options of a comparison beside the recipe."""

    methods: str = "all"
    budget: float | None = None
    """Seconds for all runs together."""
    tokens: int | None = None
    """Training tokens of each run."""
    seeds: int = 1
    tune: bool = False
    workers: int | None = None
    """Parallel runs; None: as many as are faster."""


@dataclass(frozen=True, slots=True)
class CompareTask:
    """One piece of a comparison's work, whole enough to be done on another machine."""

    kind: Literal["base", "run", "search"]
    """Measure the base, make a run, or search a method's learning rate and size."""
    name: str
    """Name of the variant; of a run, with its seed."""
    config: RunConfig
    folder: Path
    """Folder of the comparison."""
    unit: int = 0
    """Steps of a unit of a search."""


class Executor(Protocol):
    """Where the tasks of a comparison are done."""

    local: bool
    """Whether they are done on this machine, so that its speed is theirs."""

    def check(self) -> None:
        """InputError, or a class of it, where it cannot be used; comes before anything is read."""

    def execute(self, context: "Context", tasks: Sequence[CompareTask]) -> Iterator[workers.Event]:
        """Do the tasks; yields how far they are and how each ended, by its place in the sequence."""
        ...


@dataclass(slots=True)
class Context:
    """What all runs of a comparison have in common."""

    config: RunConfig
    options: CompareConfig
    folder: Path
    variants: list[Variant]
    seeds: list[int]
    inputs: SharedInputs
    fork: bool
    """Whether runs have processes of their own (see `workers.can_fork`)."""
    executor: Executor
    progress: Progress
    steps: int = 0
    workers: int = 1
    threads: int = field(default_factory=processors)
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What --tune found for each variant."""

    @property
    def runnable(self) -> list[Variant]:
        return [variant for variant in self.variants if not variant.reason]


def share_base(base: nn.Module) -> nn.Module:
    """Copy the modules, hooks and `requires_grad` flags of `base`; the weights stay in the memory of `base`.

    What replaces a weight's `.data` (PiSSA's start, a cast to float32) changes the copy alone. What writes into it
    would change `base` as well, so call `untie` before training. Quantized weights cannot be shared: bitsandbytes moves
    them between a weight and its layer's state.
    """
    known: dict[int, object] = {id(buffer): buffer for buffer in base.buffers()}
    for parameter in base.parameters():
        known[id(parameter)] = nn.Parameter(parameter.data, requires_grad=parameter.requires_grad)
    return copy.deepcopy(base, known)


def untie(model: nn.Module, base: nn.Module) -> None:
    """Give the trainable parameters of `model` that lie in the memory of `base` memory of their own."""
    shared = {parameter.untyped_storage().data_ptr() for parameter in base.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.untyped_storage().data_ptr() in shared:
            parameter.data = parameter.data.clone()


def shared_inputs(config: RunConfig, tokens: Encoding, before: Path | None) -> SharedInputs:
    """What every run of a comparison with this recipe takes: the tokens, and one base that is loaded when it is used.

    `before` is where the base's records lie, or will.
    """
    kept: list[nn.Module] = []

    def base() -> nn.Module:
        if not kept:
            plain = config.model_copy(update={"model": config.model.model_copy(update={"quantize": "none"})})
            kept.append(load_base(plain, tokens).model)
        return kept[0]

    def model_for(one: RunConfig) -> nn.Module:
        new_head = tokens.labels is not None and one.seed != config.seed  # a head is initialized by its seed
        if one.model.quantize != "none" or new_head:
            return load_base(one, tokens).model
        return share_base(base())

    def own(model: nn.Module) -> None:
        for each in kept:
            untie(model, each)

    def finished(loaded: Loaded, run: RunFolder) -> None:
        write_json(run.path / "latency.json", latency(loaded, share_base(base())))

    return SharedInputs(tokens, model_for, own, before, finished)


class _Report(Progress):
    """Reports from a worker how far its run is, twice a second at most."""

    def __init__(self, send: workers.Send) -> None:
        self.send, self.total, self.at = send, 0, 0.0

    def train_begins(self, start: int, steps: int) -> None:
        self.total = steps

    def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
        now = time.monotonic()
        if now - self.at > 0.5:
            self.at = now
            self.send({"share": record["step"] / self.total})


def train_variant(config: RunConfig, inputs: SharedInputs, send: workers.Send) -> dict[str, Any]:
    """Make one run as `luthier train` would, on shared inputs."""
    return train(config, progress=_Report(send), shared=inputs)


def run_all(context: Context, tasks: Sequence[CompareTask], names: Sequence[str]) -> Iterator[workers.Event]:
    """Do the tasks with one bar over all; yields how each of them ended. Raises Stopped after a signal."""
    shares = [0.0] * len(tasks)
    stopped = None
    for event in context.executor.execute(context, tasks):
        shares[event.job] = min(0.99, event.value["share"]) if event.kind == "progress" else 1.0
        if event.kind == "stopped":
            stopped = int(event.value)
        elif event.kind != "progress":
            yield event
        active = [name for name, share in zip(names, shares, strict=True) if 0 < share < 1]
        context.progress.runs(sum(shares), len(shares), ", ".join(active))
    context.progress.train_ends()
    if stopped is not None:
        raise Stopped("stopped; everything that was trained is saved", stopped)


def parallel_runs(context: Context) -> tuple[int, float]:
    """(number of parallel runs, seconds of a step of one of them), by timing two steps alone and side by side.

    Nothing is timed, and the seconds are 0, where the number is known and no budget asks for the seconds.
    """
    count = processors()
    wanted = 1 if not context.fork or count == 1 else context.options.workers
    if wanted and not context.options.budget:
        return wanted, 0.0
    first = next(one for one in context.runnable if one.config.model.quantize == "none")
    place = context.folder / "trial"
    inputs = replace(context.inputs, before=None, finished=lambda loaded, run: None)
    trial = first.recipe(context.config.seed, place, steps=3, evaluate_every=10_000, save_every=10_000)
    little = trial.evaluate.model_copy(update={"before": False, "generate": 0, "rows": 2, "forgetting": False})

    def seconds(count: int, threads: int) -> float:
        runs = [trial.model_copy(update={"run": f"{place}/{number}", "evaluate": little}) for number in range(count)]
        jobs = [partial(train_variant, run, inputs) for run in runs]
        events = workers.run_jobs(jobs, workers=count, threads=threads, fork=context.fork)
        results_of(events, f"a trial of {first.name}")
        steps = [r["seconds"] for n in range(count) for r in RunFolder(place / str(n)).history() if r["step"] > 1]
        shutil.rmtree(place, ignore_errors=True)
        return float(sum(steps) / len(steps))

    context.progress.stage("trying how many parallel runs are fastest")
    alone = seconds(1, count)
    if wanted == 1:
        return 1, alone
    many = wanted or count
    beside = seconds(many, max(1, count // many))
    if wanted or beside / many < 0.9 * alone:
        context.progress.note(f"{many} parallel runs, {alone * many / beside:.2f} times as fast as one after another")
        return many, beside
    return 1, alone


def results_of(events: Iterator[workers.Event], what: str) -> list[Any]:
    """The results of jobs that the comparison cannot go on without; raises the first failure or stop."""
    results = []
    for end in events:
        if end.kind == "stopped":
            raise Stopped("stopped; rerun the same command to resume", int(end.value))
        if end.kind == "failed":
            raise InputError(f"{what}: {end.value}")
        if end.kind == "done":
            results.append(end.value)
    return results


def tokens_per_step(context: Context) -> float:
    """Mean number of tokens of an optimizer step, without padding."""
    lengths = context.inputs.tokens.data.rows.lengths
    return sum(lengths) / len(lengths) * min(context.config.train.batch_size, len(lengths))


def steps_for_time(seconds: float, step: float, overhead: float, *, runs: int, workers: int, most: int) -> int:
    """Steps of each run so that all runs together take `seconds`, at most the recipe's own `most` steps.

    `step` is the seconds of one step, `overhead` the seconds that a run needs beside its training. InputError where the
    time is too short for one step of each.
    """
    left, each = seconds * workers - runs * overhead, runs * step
    if left < each:
        least = (runs * overhead + 20 * each) / workers
        raise InputError(
            f"--budget {duration(seconds)} is too short for {runs} runs: measuring and saving alone takes about "
            f"{duration(runs * overhead / workers)}, one step of each {duration(each / workers)}",
            fix=f"--budget {int(least / 60) + 1}m, fewer --methods or --seeds, or evaluate.rows=100",
        )
    return min(most, int(left / each))
