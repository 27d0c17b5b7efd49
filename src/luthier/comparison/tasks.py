"""The tasks of a comparison: done on what is in memory here, or each alone on another machine."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from luthier.comparison import tuning, workers
from luthier.comparison.candidates import Variant
from luthier.comparison.runner import CompareTask, Context, Executor, shared_inputs, train_variant
from luthier.core.errors import LuthierError
from luthier.core.events import Progress
from luthier.pipeline.measure import measure_base
from luthier.pipeline.prepare import SharedInputs, on_this_machine, plan_inputs, prepare_data, tokenize
from luthier.planning.resolve import resolve
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder


def do(task: CompareTask, inputs: SharedInputs, send: workers.Send) -> Any:
    """Do a task: the result of a run, what a search found, or what measuring the base took."""
    if task.kind == "search":
        return tuning.search(Variant(task.name, task.config), inputs, task.unit, task.folder, send)
    return train_variant(task.config, inputs, send) if task.kind == "run" else _measure_base(task, inputs)


class _Notes(Progress):
    """Keeps the notes, which the comparison's own process shows."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def note(self, text: str) -> None:
        self.kept.append(text)


def _measure_base(task: CompareTask, inputs: SharedInputs) -> dict[str, Any]:
    notes = _Notes()
    folder = RunFolder(_before(task.folder).parent)
    folder.ledger.begin(task.config.model_dump(mode="json"))
    loaded = inputs.load(task.config, folder)
    loaded.model.eval()
    return {"seconds": measure_base(loaded, folder, notes).seconds, "notes": notes.kept}


def _before(folder: Path) -> Path:
    return folder / "base" / "before.json"


class Here:
    """Tasks are done on this machine, on the base and the rows that are in memory."""

    local = True

    def check(self) -> None:
        """Nothing can be missing."""

    def execute(self, context: Context, tasks: Sequence[CompareTask]) -> Iterator[workers.Event]:
        """Do them in forks of this process, or one after another where it cannot fork."""
        searches = any(task.kind == "search" for task in tasks)
        inputs = tuning.search_inputs(context.inputs) if searches else context.inputs
        jobs = [partial(do, task, inputs) for task in tasks]
        return workers.run_jobs(jobs, workers=context.workers, threads=context.threads, fork=context.fork)


HERE: Executor = Here()


def task_record(task: CompareTask) -> dict[str, Any]:
    """The task as JSON has it; `do_alone` reads it."""
    recipe, folder = task.config.model_dump(mode="json"), str(task.folder)
    named = {"kind": task.kind, "name": task.name, "unit": task.unit}
    return {**named, "recipe": recipe, "folder": folder, "cwd": str(Path.cwd())}


def do_alone(given: dict[str, Any]) -> tuple[str, Any]:
    """Do a task that `task_record` made, alone in this process, which reads and loads everything: how it ended."""
    os.chdir(given["cwd"])  # relative paths of the recipe begin there

    def job(send: workers.Send) -> Any:
        config, folder = RunConfig.model_validate(given["recipe"]), Path(given["folder"])
        task = CompareTask(given["kind"], given["name"], config, folder, given["unit"])
        tokens = tokenize(config, prepare_data(config, Progress()), Progress())
        before = _before(folder)
        inputs = shared_inputs(config, tokens, before if before.is_file() else None)
        return do(task, tuning.search_inputs(inputs) if task.kind == "search" else inputs, send)

    return workers.outcome(job, lambda progress: None)


def planned_bytes(context: Context, task: CompareTask) -> int | None:
    """Peak memory that the plan of the task's run names, in bytes; None where it cannot be estimated here."""
    try:
        plan = resolve(plan_inputs(on_this_machine(task.config), context.inputs.tokens)).plan
    except LuthierError:  # this machine lacks what the others have
        return None
    return None if plan is None else plan.peak
