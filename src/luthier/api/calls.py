"""The commands as functions. Each makes a recipe of its arguments and calls what the command line calls.

Arguments are the keys of a recipe: `model`, `data`, `method` and `task` are a name or a dict with more keys, `train`
and `evaluate` are dicts, and `recipe` is a YAML file that the others are put over. Raises InputError, or a class of it,
for everything that the user can fix; a mistake in a key names the nearest one.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from luthier.api.arguments import overrides_of, recipe_from
from luthier.api.reporting import Shown, reporting
from luthier.api.results import Choice, Comparison, DataCheck, RunPlan
from luthier.api.rows import Rows, data_settings
from luthier.api.run import Run

if TYPE_CHECKING:
    from luthier.api.prepared import PreparedRun

Block: TypeAlias = str | Mapping[str, Any]
"""A name or a path, or a dict of all keys of the block."""
Folder: TypeAlias = str | os.PathLike[str]


def train(
    *,
    model: Folder | Mapping[str, Any] | None = None,
    data: Rows | None = None,
    method: Block | None = None,
    task: Block | None = None,
    train: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    seed: int | None = None,
    run: Folder | None = None,
    recipe: Folder | None = None,
    progress: Shown = None,
    allow_code: bool = False,
    **settings: Any,
) -> Run:
    """Fine-tune, and measure before and after; the same call again resumes or finds the run.

    `data` is a path, a hub id, a list of dicts, a datasets.Dataset or a pandas DataFrame, or a dict with `path`,
    `validation`, `test` and the other keys of the data block. Rows in memory are kept in the cache, so that a run can
    be resumed. `run` is the folder, by default runs/<data>-<method>. Raises Stopped after ctrl-C, with all steps saved.
    """
    from luthier.pipeline.processes import processes, train_on
    from luthier.pipeline.train import train as train_run

    given = recipe_from(
        {
            **{"model": model, "data": data, "method": method, "task": task, "train": train},
            **{"evaluate": evaluate, "seed": seed, "run": run, **settings},
        },
        recipe,
        allow_code=allow_code,
    )
    with reporting(progress, given.config.train.log_every) as listener:
        for note in given.notes:
            listener.note(note)
        if (count := processes(given.config)) > 1:
            return Run(train_on(count, given.config, given.path, listener), allow_code=allow_code)
        result = train_run(given.config, recipe=given.path, progress=listener)
    return Run(result["run"], allow_code=allow_code)


def load(
    path: Folder,
    *,
    base: str | None = None,
    data: Rows | None = None,
    run: Folder | None = None,
    progress: Shown = None,
    allow_code: bool = False,
) -> Run:
    """A run from its folder or URL, finished or not; or a run made of an adapter in PEFT's format, in the folder `run`.

    An adapter's `base` is the one that it names, unless another is given, and `data` are the rows to measure it on.
    """
    from luthier.pipeline.adopt import as_run
    from luthier.runs.remote import local

    with reporting(progress) as listener:
        place = local(path, listener).expanduser()
        if (place / "adapter_config.json").is_file():
            rows = None if data is None else str(data_settings(data))
            place, _ = as_run(place, base, rows, overrides_of({} if run is None else {"run": run}), listener)
    return Run(place, allow_code=allow_code)


def check(
    *,
    data: Rows | None = None,
    model: Folder | Mapping[str, Any] | None = None,
    task: Block | None = None,
    recipe: Folder | None = None,
    out: Folder | None = None,
    progress: Shown = None,
    **settings: Any,
) -> DataCheck:
    """Look at the data before training: refused rows, lengths, labels, duplicates, leaks, and what is learned.

    Writes a page, data.json and refused.jsonl to `out`, by default runs/check-<data>. Loads a tokenizer, no weights.
    """
    from luthier.pipeline.check import check as check_data
    from luthier.recipe.identity import path_beside

    named = {"model": model, "data": data, "task": task, **settings}
    given = recipe_from(named, recipe, allow_code=False, measures=False)
    place = path_beside("check", given.config, given.path) if out is None else Path(out)
    with reporting(progress) as listener:
        return DataCheck(check_data(given.config, place, progress=listener))


def plan(
    *,
    model: Folder | Mapping[str, Any] | None = None,
    data: Rows | None = None,
    method: Block | None = None,
    task: Block | None = None,
    train: Mapping[str, Any] | None = None,
    recipe: Folder | None = None,
    devices: str | None = None,
    nodes: int | None = None,
    progress: Shown = None,
    allow_code: bool = False,
    **settings: Any,
) -> RunPlan:
    """Memory and time of a run, before any weights are downloaded; writes nothing.

    On this machine, or on `devices` ("8xH100") of each of some `nodes`.
    """
    from luthier.pipeline.plan import plan as plan_run
    from luthier.planning.devices import Cluster

    cluster = Cluster.parse(devices, nodes)

    named = {"model": model, "data": data, "method": method, "task": task, "train": train, **settings}
    given = recipe_from(named, recipe, allow_code=allow_code)
    with reporting(progress) as listener:
        return RunPlan(plan_run(given.config, cluster, progress=listener))


def choose(
    *,
    model: Folder | Mapping[str, Any] | None = None,
    data: Rows | None = None,
    task: Block | None = None,
    recipe: Folder | None = None,
    rows: int | None = None,
    variants: int | None = None,
    latency: float | str | None = None,
    memory: int | str | None = None,
    devices: int | None = None,
    time: float | str | None = None,
    evidence: Sequence[Folder] = (),
    progress: Shown = None,
    allow_code: bool = False,
    **settings: Any,
) -> Choice:
    """Recommend a method, with reasons that can be looked up; reads the data and no weights, writes nothing.

    `rows` is a number of training rows, in place of data. `latency` is in ms per token, or "merged"; `memory` is that
    of another machine's GPU ("24GB", or bytes) and `devices` their number; `time` is of training ("2h", or seconds).
    """
    from luthier.pipeline.choose import choose as choose_method
    from luthier.planning.advisor.question import ChooseOptions

    words = {"latency": latency, "memory": memory, "time": time}
    told: Any = {key: None if value is None else str(value) for key, value in words.items()}
    wanted = ChooseOptions.parse(variants=variants, devices=devices, rows=rows, **told)
    given = recipe_from({"model": model, "data": data, "task": task, **settings}, recipe, allow_code=allow_code)
    typed = [*([] if recipe is None else [str(recipe)]), *given.overrides]
    boards = [Path(each) for each in evidence]
    with reporting(progress) as listener:
        return Choice(choose_method(given.config, wanted, evidence=boards, given=typed, progress=listener))


def compare(
    *,
    model: Folder | Mapping[str, Any] | None = None,
    data: Rows | None = None,
    methods: str | Sequence[str] = "all",
    task: Block | None = None,
    train: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    seed: int | None = None,
    run: Folder | None = None,
    recipe: Folder | None = None,
    budget: float | str | None = None,
    tokens: int | None = None,
    seeds: int = 1,
    tune: bool = False,
    workers: int | None = None,
    on: str = "here",
    address: str = "",
    partition: str = "",
    time: str = "",
    progress: Shown = None,
    allow_code: bool = False,
    **settings: Any,
) -> Comparison:
    """Train every method, or those named, on the same base, rows and tokens, and test which differences are real.

    `budget` is the time of all runs together ("10m", or seconds). The same call again resumes. The runs are made on
    this machine, or `on` "ray" (at `address`) or "slurm" (in a `partition`, each job within `time`, HH:MM:SS).
    """
    from luthier.comparison.compare import compare as compare_methods
    from luthier.comparison.compare import executor_on
    from luthier.comparison.runner import CompareConfig
    from luthier.kernels.process import call_apart
    from luthier.planning.advisor.question import seconds_of

    given = recipe_from(
        {
            **{"model": model, "data": data, "task": task, "train": train},
            **{"evaluate": evaluate, "seed": seed, "run": run, **settings},
        },
        recipe,
        allow_code=allow_code,
    )
    names = methods if isinstance(methods, str) else ",".join(methods)
    seconds = None if budget is None else seconds_of(str(budget), "budget", default_unit="s")
    options = CompareConfig(names, seconds, tokens, seeds, tune, workers)
    executor = executor_on(on, address, partition, time)
    with reporting(progress) as listener:
        made = partial(compare_methods, given.config, options, recipe=given.path, executor=executor, progress=listener)
        # Runs of this machine are forked from a thread that has computed nothing: OpenMP's workers do not live through
        # a fork, and here, unlike on the command line, this thread may have trained before.
        return Comparison(call_apart(made) if executor.local else made())


def prepare(
    *,
    model: Folder | Mapping[str, Any] | None = None,
    data: Rows | None = None,
    method: Block | None = None,
    task: Block | None = None,
    train: Mapping[str, Any] | None = None,
    seed: int | None = None,
    recipe: Folder | None = None,
    progress: Shown = None,
    allow_code: bool = False,
    **settings: Any,
) -> "PreparedRun":
    """Model, rows and optimizer as `train` has them before its first step, for a loop of your own; writes nothing.

    Steps that are taken one by one give the losses and weights of `train`, to the bit.
    """
    from luthier.api.prepared import PreparedRun
    from luthier.pipeline.train import before_first_step

    named = {"model": model, "data": data, "method": method, "task": task, "train": train, "seed": seed, **settings}
    given = recipe_from(named, recipe, allow_code=allow_code, measures=False)
    with reporting(progress) as listener:
        return PreparedRun(*before_first_step(given.config, progress=listener))
