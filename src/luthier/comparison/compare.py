"""A comparison from its recipe to its table: what is shared is made once, every run is an ordinary run folder.

docs/compare.md lists the files. Beside them base/before.json has the base's records on the held-out rows, and
latency.json of a run what `latency` measured.
"""

import time
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from luthier.comparison import runner, tuning, workers
from luthier.comparison.candidates import variants_of, with_reason
from luthier.comparison.runner import CompareConfig, CompareTask, Context, Executor
from luthier.comparison.table import table_of
from luthier.comparison.tasks import HERE
from luthier.core.errors import Busy, InputError, UnknownPlugin
from luthier.core.events import SILENT, Progress
from luthier.core.files import lock, read_object, write_json, write_text
from luthier.core.signals import watch
from luthier.core.units import duration
from luthier.evaluation.scores import primary_metric
from luthier.kernels.process import processors
from luthier.models.load import device, locate
from luthier.pipeline import prepare
from luthier.planning.plan import tuned_skeleton
from luthier.recipe.config import RunConfig
from luthier.recipe.identity import local_path
from luthier.recipe.parse import RecipeSource
from luthier.reports import compare_report
from luthier.reports.run_report import figure
from luthier.runs.folder import RunFolder
from luthier.training.settings import total_steps


def compare(
    config: RunConfig,
    options: CompareConfig,
    *,
    recipe: RecipeSource | None = None,
    executor: Executor = HERE,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Do by `executor` what is missing of the comparison, and return the content of compare.json.

    Repeat the call to resume. Raises InputError for what the user can fix, before the first run.
    """
    folder = local_path("compare", config, recipe)
    context = _prepare(config, options, folder, executor, progress)
    if RunFolder(folder).result.is_file() or RunFolder(folder).metrics.exists():
        raise InputError(f"{folder} is the folder of a run", fix="run=ANOTHER_DIR")
    folder.mkdir(parents=True, exist_ok=True)
    busy = Busy(f"{folder}: another process is at work on this comparison", fix="wait for it, or run=ANOTHER_DIR")
    with watch(), lock(folder, busy):
        _decide(context)
        inputs = (context.inputs.tokens.source, context.inputs.tokens.labels, context.steps)
        context.variants = [  # with the steps there are: AdaLoRA needs more than one
            with_reason(each, options.methods, lambda one: tuned_skeleton(one.model, one.method, *inputs))
            for each in context.variants
        ]
        if options.tune:
            tuning.tune(context)
        failed = _run(context)
        body = {
            "version": 1,
            "folder": str(folder),
            "model": config.model.path,
            "data": config.data.path,
            "task": context.inputs.tokens.data.task.name,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            **{key: getattr(context, key) for key in ("steps", "seeds", "workers", "threads")},
            "tuned": context.tuned or None,
            "tokens": round(context.steps * runner.tokens_per_step(context)),
            **table_of(folder, context.variants, context.seeds, failed),
        }
        write_json(folder / "compare.json", body)
        write_text(folder / "compare.html", compare_report.render(body))
        return body


def executor_on(on: str, address: str = "", partition: str = "", time: str = "") -> Executor:
    """Where runs are made: here, or on ray or slurm. InputError for an option that belongs elsewhere."""
    options = ("address", address, "ray"), ("partition", partition, "slurm"), ("time", time, "slurm")
    for option, value, engine in options:
        if value and on != engine:
            raise InputError(f"--{option} belongs to --on {engine}", fix="leave it out")
    if on == "ray":
        from luthier.comparison.on_ray import OnRay

        return OnRay(address)
    if on == "slurm":
        from luthier.comparison.on_slurm import OnSlurm

        return OnSlurm(partition, time)
    if on != "here":
        raise UnknownPlugin("engine", on, ["ray", "slurm", "here"])
    return HERE


def _prepare(
    config: RunConfig, options: CompareConfig, folder: Path, executor: Executor, progress: Progress
) -> Context:
    """Data, tokens, base and methods; any mistake in them is an error here, before anything is trained."""
    if config.data.streaming:
        fix = "data.streaming=false, and data.limit where they are many"
        raise InputError("a comparison reads its rows first", fix=fix)
    if options.budget and options.tokens:
        raise InputError("--budget and --tokens both set the length of a run", fix="give one of them")
    if options.budget and not executor.local:
        raise InputError("--budget measures the speed of this machine, and the runs are on others", fix="--tokens N")
    executor.check()
    fork = executor.local and workers.can_fork(device(config.model))
    if fork:
        torch.set_num_threads(1)  # threads do not survive a fork: see workers
        # Every run uses these late: the forks share them instead of spending seconds on them.
        for module in ("resvg_py", "luthier.reports.run_report", "luthier.training.trainer"):
            import_module(module)
    data = prepare.prepare_data(config, progress)
    has_test = bool(len(data.test_examples))
    held = len(data.side("test" if data.test_rows or has_test else "validation").examples)
    if held < 2:
        few = f"{held} held-out example{'s' * (held != 1)}: too few to compare methods"
        raise InputError(few, fix="data.validation=0.1, or a file of its own")
    source = locate(config.model)
    labels = prepare.head_labels(data)

    def check(one: RunConfig) -> None:
        if executor.local:
            prepare.on_this_machine(one)
        tuned_skeleton(one.model, one.method, source, labels)

    variants = variants_of(config, options.methods, check)
    runnable = [variant for variant in variants if not variant.reason]
    positions = max(variant.config.method.positions for variant in runnable) * (2 if options.tune else 1)
    tokens = prepare.tokenize(runnable[0].config, data, progress, positions=positions)
    for place, variant in enumerate(variants):
        # The same rows for every method, cut where the one with the longest prompt has to cut them. Weights of the best
        # held-out loss are kept only where the score comes from other rows than that loss.
        own = variant.config.train
        equal = own.model_copy(update={"max_length": tokens.max_length, "keep_best": own.keep_best and has_test})
        variants[place] = replace(variant, config=variant.config.model_copy(update={"train": equal}))
    inputs = runner.shared_inputs(config, tokens, folder / "base" / "before.json")
    if executor.local:
        inputs.base(_plain(config))  # loaded here, before the forks that share it
    seeds = list(range(config.seed, config.seed + options.seeds))
    return Context(config, options, folder, variants, seeds, inputs, fork, executor, progress)


def _plain(config: RunConfig) -> RunConfig:
    """The recipe with its base as it is, not quantized."""
    return config.model_copy(update={"model": config.model.model_copy(update={"quantize": "none"})})


def _decide(context: Context) -> None:
    """Decide the steps of each run and the parallel runs, or read what was decided when the comparison began."""
    kept, data, config = context.folder / "comparison.json", context.inputs.tokens.data, context.config
    recipe = {key: value for key, value in config.model_dump(mode="json").items() if key not in ("run", "method")}
    asked = {**asdict(context.options), "recipe": recipe, "data": data.fingerprint}
    if kept.is_file():
        before = read_object(kept, "restore it from a copy, or compare in another folder: run=DIR")
        changed = [key for key, value in asked.items() if before["asked"].get(key) != value and key != "methods"]
        if changed:
            why = f"{context.folder} holds another comparison: {', '.join(changed)} changed"
            raise InputError(why, fix="run=ANOTHER_DIR")
        context.steps, context.workers, context.threads = (before[key] for key in ("steps", "workers", "threads"))
        before["asked"]["methods"] = context.options.methods
        write_json(kept, before)
        _measure_base(context)
        return
    took = _measure_base(context)
    step = 0.0
    if context.executor.local:
        context.workers, step = runner.parallel_runs(context)
        context.threads = max(1, processors() // context.workers) if context.fork else processors()
    else:
        context.workers, context.threads = context.options.workers or len(context.runnable) * len(context.seeds), 1
    context.steps = total_steps(config.train, len(data.rows))
    if wanted := context.options.tokens:
        context.steps = int(wanted / runner.tokens_per_step(context))
        if context.steps < 1:
            least = int(runner.tokens_per_step(context)) + 1
            raise InputError(
                f"--tokens {wanted} is less than one step of {config.train.batch_size} rows, about {least} tokens",
                fix=f"--tokens {50 * least}, or a smaller train.batch_size",
            )
    elif context.options.budget:
        budget, runs, beside = context.options.budget, len(context.runnable) * len(context.seeds), 1.3 * took + 4
        limits = {"workers": context.workers, "most": context.steps}
        context.steps = runner.steps_for_time(budget, step, beside, runs=runs, **limits)
    if context.options.tune:
        tuning.steps_of(context.steps)  # refuses too few steps now, not after an hour
    write_text(context.folder / "recipe.yaml", config.dump())
    decided = {key: getattr(context, key) for key in ("steps", "workers", "threads")}
    write_json(kept, {"asked": asked, **decided, "seconds_a_step": step, "seconds_of_measuring": took})


def _measure_base(context: Context) -> float:
    """Measure the base once for all runs; returns the seconds that it takes, 0 where before.json is there."""
    inputs, before = context.inputs, context.inputs.before
    assert before is not None
    if before.is_file():
        return 0.0
    config = _plain(context.runnable[0].config).model_copy(update={"seed": context.config.seed})
    before.parent.mkdir(parents=True, exist_ok=True)
    context.progress.stage("evaluating the base, once for all methods")
    events = context.executor.execute(context, [CompareTask("base", "base", config, context.folder)])
    (made,) = runner.results_of(events, "the base")
    for note in made["notes"]:
        context.progress.note(note)
    if not before.is_file():  # evaluate.before=false, or a base with random weights
        inputs.before = None
    return float(made["seconds"])


def _run(context: Context) -> dict[tuple[str, int], str]:
    """Make every run that has no result yet; returns (variant, seed) -> why it failed."""
    # Seeds are outermost: after the first pass every method has a result.
    every = [(one, seed) for seed in context.seeds for one in context.runnable]
    waiting = [(v, s) for v, s in every if not RunFolder(v.run_folder(context.folder, s)).result.is_file()]
    failed: dict[tuple[str, int], str] = {}
    if not waiting:
        return failed
    tokens = context.steps * runner.tokens_per_step(context)
    context.progress.stage(
        f"{len(waiting)} of {len(every)} runs, {context.steps} steps, about {tokens:,.0f} tokens each"
        + (f", {context.workers} at a time" if context.workers > 1 else "")
    )
    recipes = [variant.recipe(seed, context.folder, steps=context.steps) for variant, seed in waiting]
    names = [f"{variant.name}-s{seed}" for variant, seed in waiting]
    tasks = [CompareTask("run", name, recipe, context.folder) for name, recipe in zip(names, recipes, strict=True)]
    began = time.monotonic()
    for done, end in enumerate(runner.run_all(context, tasks, [variant.name for variant, _ in waiting]), 1):
        variant, seed = waiting[end.job]
        if end.kind == "failed":
            failed[variant.name, seed] = str(end.value)
            context.progress.warn(f"{variant.name}, seed {seed}: {end.value}")
            continue
        left = (time.monotonic() - began) / done * (len(waiting) - done)
        name = primary_metric(end.value["tuned"])
        score = f"{name.replace('_', ' ')} {figure(name, end.value['tuned'][name]['value'])}"
        said = f"{variant.name}, seed {seed}: {score}, trained in {end.value['train_seconds']:.0f} s"
        rest = f"; about {duration(left)} for the others" if done < len(waiting) else ""
        context.progress.said(f"{said}; {done} of {len(waiting)} runs are done{rest}")
    return failed
