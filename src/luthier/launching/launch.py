"""Start a run by an engine, or write the files from which the engine's own program starts it."""

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from luthier.core.errors import InputError, UnknownPlugin
from luthier.core.events import SILENT, Progress
from luthier.launching.base import Job, LaunchOptions
from luthier.recipe.config import RunConfig
from luthier.recipe.identity import run_path
from luthier.recipe.parse import RecipeSource

ENGINES = ("ray", "slurm", "kubernetes")


def launch(
    config: RunConfig,
    engine: str,
    options: LaunchOptions,
    *,
    recipe: RecipeSource | None = None,
    write: Path | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any] | None:
    """Start the run elsewhere; returns its result where the engine waits for the end (Ray), else None.

    With `write` only the files are written, into that folder. InputError for an option that the engine does not take,
    and for everything else that the user can fix; MissingExtra where the engine's own program is not installed.
    """
    if engine not in ENGINES:
        raise UnknownPlugin("engine", engine, [*ENGINES])
    module = import_module(f"luthier.launching.{engine}")
    for field in fields(options):
        if getattr(options, field.name) != field.default and field.name not in module.TAKES:
            raise InputError(f"--{field.name} has no effect on {engine}", fix="leave it out")
    if not config.data.path:
        raise InputError("no data given", fix="data=FILE, a hub id, or data=builtin:reviews")
    run = run_path(config, recipe).absolute()
    job = Job(config.model_copy(update={"run": ""}), run, options)
    if write is None:
        folder = run.with_name(f"{run.name}-launch")
    else:
        folder = write.expanduser().absolute()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"--write {folder} already exists and is not empty", fix="another folder, or move it away")
    module.check(job, written=write is not None)
    folder.mkdir(parents=True, exist_ok=True)
    job.write_recipe(folder)
    start = module.write(job, folder, progress)
    if write is None:
        result: dict[str, Any] | None = module.start(job, folder, progress)
        return result
    progress.stage(f"written: {folder}")
    progress.note(f"start it: {start}")
    return None
