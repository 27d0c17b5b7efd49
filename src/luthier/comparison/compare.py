"""A comparison from its recipe to its table: what is shared is made once, every run is an ordinary run folder.

recipe.yaml      the recipe, without a method of its own
comparison.json  what was asked, and what was decided by it: methods, seeds, steps, processes
base/before.json the base's records on the held-out rows
search/          what --tune found for each method
arms/lora-s0/    one run: what `luthier train arms/lora-s0/recipe.yaml` would have made; latency.json beside it
compare.json     the table
compare.html     the page
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from luthier.comparison import budget, tuning, workers
from luthier.comparison.candidates import Arm, arms_of, runs_of
from luthier.comparison.runner import CompareConfig, Shared, at_a_time, processors, raise_end, train, work
from luthier.comparison.table import rows_of
from luthier.core.errors import Busy, InputError, Stopped
from luthier.core.events import Progress
from luthier.core.files import read_object, write_json, write_text
from luthier.core.signals import Interrupted, watch
from luthier.core.units import duration
from luthier.methods.base import PeftMethod
from luthier.pipeline.prepare import (
    Loaded,
    SharedInputs,
    Tokens,
    check_method,
    load_base,
    on_this_machine,
    prepare_data,
    tokenize,
)
from luthier.recipe.config import RunConfig
from luthier.recipe.identity import check_path
from luthier.runs.folder import RunFolder

TRIAL_STEPS = 2
"""Of each run, when it is decided how many to do at a time."""


def compare(
    config: RunConfig, wish: CompareConfig, *, recipe: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Run what is missing of the comparison and return what stands in compare.json.

    The same call again goes on where it stopped. Raises InputError for what the user can fix, before the first run.
    """
    progress = progress or Progress()
    folder = (
        Path(config.run)
        if config.run
        else check_path(config, recipe).with_name(check_path(config, recipe).name.replace("check-", "compare-", 1))
    )
    shared = _prepare(config, wish, folder, progress)
    with watch() as request, Alone(folder):
        try:
            _decide(shared)
            _refuse_short(shared)
            if wish.tune:
                tuning.tune(shared)
            return _report(shared, _run(shared))
        except Interrupted:
            raise Stopped("stopped; everything that was trained is saved", request.exit_code) from None


class Alone:
    """One process at a time works in the folder of a comparison."""

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        self.folder, self.lock = folder, FileLock(folder / ".lock", timeout=0)

    def __enter__(self) -> None:
        from filelock import Timeout

        if RunFolder(self.folder).result.is_file() or (self.folder / "metrics.jsonl").exists():
            raise InputError(f"{self.folder} is the folder of a run", fix="run=ANOTHER_DIR")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire()
        except Timeout:
            raise Busy(
                f"{self.folder}: another process is at work on this comparison", fix="wait for it, or run=ANOTHER_DIR"
            ) from None

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def _prepare(config: RunConfig, wish: CompareConfig, folder: Path, progress: Progress) -> Shared:
    """Data, tokens, base and methods; whatever is wrong with them is said here, before anything is trained."""
    import torch

    from luthier.comparison.latency import latency
    from luthier.comparison.shared_base import lend, part
    from luthier.models.load import device, locate

    if config.data.streaming:
        raise InputError(
            "a comparison reads its rows first", fix="data.streaming=false, and data.limit where they are many"
        )
    if wish.budget and wish.tokens:
        raise InputError("--budget and --tokens both say how long a run is", fix="give one of them")
    where = device(config.model)
    if workers.can_fork(where):
        torch.set_num_threads(1)  # threads do not live through a fork: see children
    data = prepare_data(config, progress)
    held = len(data.side("test" if data.test_rows or len(data.test_examples) else "validation").examples)
    if held < 2:
        raise InputError(
            f"{held} held-out example{'s' * (held != 1)}: methods cannot be told apart by that",
            fix="data.validation=0.1, or a file of its own",
        )
    source = locate(config.model)
    labels = tuple(getattr(data.task, "labels", ())) if data.task.model_class == "classification" else None

    def check(one: RunConfig) -> None:
        on_this_machine(one)
        check_method(one, source, labels)

    arms = arms_of(config, wish.methods, check)
    runnable = [arm for arm in arms if not arm.reason]
    taken = max(arm.config.method.positions for arm in runnable) * (2 if wish.tune else 1)
    tokens = tokenize(runnable[0].config, data, progress, positions=taken)
    arms = [_equal(arm, tokens, best=bool(len(data.test_examples))) for arm in arms]
    base = load_base(config.model_copy(update={"model": _plain(config)}), data, tokens)

    def own(one: RunConfig) -> Any:
        fresh = labels is not None and one.seed != config.seed  # its head starts by its seed
        if one.model.quantize != "none" or fresh:
            return load_base(one, data, tokens).model
        return lend(base.model)

    def finished(loaded: Loaded, run: RunFolder) -> None:
        write_json(run.path / "latency.json", latency(loaded, lend(base.model)))

    before = folder / "base" / "before.json"
    given = SharedInputs(data, tokens, own, lambda model: part(model, base.model), before, finished)
    return Shared(
        config, wish, folder, arms, list(range(config.seed, config.seed + wish.seeds)), given, where, progress
    )


def _equal(arm: Arm, tokens: Tokens, *, best: bool) -> Arm:
    """The same rows for every method, cut where the one with the longest prompt has to cut them.

    Weights of the best held-out loss are kept only where the score comes from other rows than that loss.
    """
    train = arm.config.train.model_copy(
        update={
            "max_length": tokens.max_length,
            "keep_best": arm.config.train.keep_best and best,
        }
    )
    return replace(arm, config=arm.config.model_copy(update={"train": train}))


def _plain(config: RunConfig) -> Any:
    return config.model.model_copy(update={"quantize": "none"})


def _decide(shared: Shared) -> None:
    """How long each run is and how many go on at a time; or what was decided when the comparison began."""
    kept = shared.folder / "comparison.json"
    asked = {**asdict(shared.wish), "recipe": _asked(shared.config), "data": shared.given.data.fingerprint}
    if kept.is_file():
        before = read_object(kept, "restore it from a copy, or compare in another folder: run=DIR")
        changed = [key for key, value in asked.items() if before["asked"].get(key) != value and key != "methods"]
        if changed:
            raise InputError(
                f"{shared.folder} holds another comparison: {', '.join(changed)} changed", fix="run=ANOTHER_DIR"
            )
        shared.steps, shared.workers, shared.threads = (before[key] for key in ("steps", "workers", "threads"))
        before["asked"]["methods"] = shared.wish.methods
        write_json(kept, before)
        _measure_base(shared)
        return
    took = _measure_base(shared)
    shared.workers, step = at_a_time(shared)
    shared.threads = max(1, processors() // shared.workers) if shared.fork else processors()
    own = budget.own_steps(shared.given.data, shared.config.train)
    runnable = [arm for arm in shared.arms if not arm.reason]
    if shared.wish.tokens:
        shared.steps = budget.steps_for_tokens(shared.wish.tokens, shared.given.data, shared.config.train)
    elif shared.wish.budget:
        shared.steps = budget.steps_for_time(
            shared.wish.budget,
            [step] * len(runnable),
            1.3 * took + 4,
            seeds=len(shared.seeds),
            workers=shared.workers,
            most=own,
        )
    else:
        shared.steps = own
    if shared.wish.tune:
        tuning.steps_of(shared.steps)  # said now, not after an hour
    write_text(shared.folder / "recipe.yaml", shared.config.dump())
    write_json(
        kept,
        {
            "asked": asked,
            "steps": shared.steps,
            "workers": shared.workers,
            "threads": shared.threads,
            "seconds_a_step": step,
            "seconds_of_measuring": took,
        },
    )


def _refuse_short(shared: Shared) -> None:
    """Methods that need more steps than there are (AdaLoRA's budget): an error where they are named, else a reason."""
    from luthier.models.load import skeleton

    data, tokens = shared.given.data, shared.given.tokens
    for place, arm in enumerate(shared.arms):
        if arm.reason:
            continue
        model = skeleton(arm.config.model, tokens.source, labels=tokens.labels)
        method = arm.config.method
        small = method.skeletal() if isinstance(method, PeftMethod) else method
        try:
            small.attach(model, steps=shared.steps, classify=data.task.model_class == "classification")
        except InputError as error:
            if shared.wish.methods != "all":
                raise InputError(f"{arm.name}: {error.message}", fix="a larger --budget or --tokens") from error
            shared.arms[place] = replace(arm, reason=str(error).replace("\n", "; "))


def _asked(config: RunConfig) -> dict[str, Any]:
    dumped = config.model_dump(mode="json")
    return {key: value for key, value in dumped.items() if key not in ("run", "method")}


def _measure_base(shared: Shared) -> float:
    """The base's records, once for all; returns the seconds that took, 0 where they were there."""
    given, before = shared.given, shared.given.before
    assert before is not None
    if before.is_file():
        return 0.0
    first = next(arm for arm in shared.arms if not arm.reason)
    config = first.config.model_copy(update={"model": _plain(shared.config), "seed": shared.config.seed})

    def job(send: workers.Send) -> float:
        from luthier.pipeline.measure import measure_base

        began = time.perf_counter()
        folder = RunFolder(before.parent)
        folder.ledger.begin(config.model_dump(mode="json"))
        loaded = given.load(config, folder)
        loaded.model.eval()
        measure_base(loaded, folder, Progress())
        return time.perf_counter() - began

    before.parent.mkdir(parents=True, exist_ok=True)
    shared.progress.stage("evaluating the base, once for all methods")
    (end,) = (e for e in workers.work([job], workers=1, threads=processors(), fork=shared.fork) if e.kind != "said")
    raise_end(end, "the base")
    if not before.is_file():  # evaluate.before=false, or a base with random weights
        given.before = None
    return float(end.value)


def _tuned(shared: Shared, arm: Arm) -> Arm:
    """With what the search has found."""
    found = (shared.chosen or {}).get(arm.name)
    if not found:
        return arm
    method = arm.config.method.spec() | ({found["field"]: found["size"]} if found["field"] else {})
    made = type(arm.config.method).model_validate({key: value for key, value in method.items() if key != "name"})
    train = arm.config.train.model_copy(update={"lr": found["lr"]})
    return replace(arm, config=arm.config.model_copy(update={"method": made, "train": train}))


def _run(shared: Shared) -> dict[tuple[str, int], str]:
    """Every run that has no result yet; returns why those failed that did."""
    every = [(_tuned(shared, arm), seed) for arm, seed in runs_of(shared.arms, shared.seeds)]
    waiting = [(a, s) for a, s in every if not RunFolder(_place(shared, a, s)).result.is_file()]
    failed: dict[tuple[str, int], str] = {}
    if not waiting:
        return failed
    tokens = shared.steps * budget.tokens_a_step(shared.given.data, shared.config.train)
    shared.progress.stage(
        f"{len(waiting)} of {len(every)} runs, {shared.steps} steps, about {tokens:,.0f} tokens each"
        + (f", {shared.workers} at a time" if shared.workers > 1 else "")
    )
    jobs = [partial(train, arm.of(seed, shared.folder, steps=shared.steps), shared.given) for arm, seed in waiting]
    began = time.monotonic()
    for done, (end, (arm, seed)) in enumerate(work(shared, jobs, waiting, lambda one: one[0].name), 1):
        left = (time.monotonic() - began) / done * (len(waiting) - done)
        if end.kind == "failed":
            failed[arm.name, seed] = str(end.value)
            shared.progress.warn(f"{arm.name}, seed {seed}: {end.value}")
        else:
            shared.progress.said(f"{arm.name}, seed {seed}: {_short(end.value)}; {_left(left, done, len(waiting))}")
    return failed


def _left(seconds: float, done: int, total: int) -> str:
    return f"{done} of {total}" + (f", about {duration(seconds)} left" if done < total else "")


def _short(result: dict[str, Any]) -> str:
    from luthier.evaluation.scores import primary_metric
    from luthier.reports.run_report import figure

    name = primary_metric(result["tuned"])
    return f"{name.replace('_', ' ')} {figure(name, result['tuned'][name]['value'])}, {result['train_seconds']:.0f} s"


def _place(shared: Shared, arm: Arm, seed: int) -> Path:
    return shared.folder / "arms" / f"{arm.name}-s{seed}"


def _report(shared: Shared, failed: dict[tuple[str, int], str]) -> dict[str, Any]:
    """Write compare.json and compare.html."""
    from luthier.reports import compare_report

    body = {
        "version": 1,
        "folder": str(shared.folder),
        "model": shared.config.model.path,
        "data": shared.config.data.path,
        "task": shared.given.data.task.name,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "steps": shared.steps,
        "tokens": round(shared.steps * budget.tokens_a_step(shared.given.data, shared.config.train)),
        "seeds": shared.seeds,
        "workers": shared.workers,
        "threads": shared.threads,
        "tuned": shared.chosen,
        **rows_of(
            shared.folder,
            [(arm.name, _tuned(shared, arm).config, arm.reason) for arm in shared.arms],
            shared.seeds,
            failed,
        ),
    }
    write_json(shared.folder / "compare.json", body)
    write_text(shared.folder / "compare.html", compare_report.render(body))
    return body
