"""Read and encode data as `train` would, but skip rows that stop it, so that one check names them all."""

from array import array

from luthier.core.errors import DataError, InputError
from luthier.core.events import Progress
from luthier.data.checks.audit import Audit, audit
from luthier.data.encode import encode, workers_for
from luthier.data.prepare import load
from luthier.data.prepared import SIDES, Prepared
from luthier.data.settings import DataConfig
from luthier.rendering.chat_template import Template
from luthier.tasks.base import Task


def read_all(config: DataConfig, task: Task | None, progress: Progress | None = None) -> Prepared:
    """The rows that can be read; the others are in `refusals`. DataError where none is left."""
    try:
        return load(lenient(config), task, progress)
    except DataError:
        load(config, task)  # its message names the first bad row; here they are only counted
        raise


def lenient(config: DataConfig, task: Task | None = None) -> DataConfig:
    """The same settings without a stop. Other policies of the recipe stay: train would follow them too."""
    changes = {"on_bad_row": "skip", "on_leak": "warn" if config.on_leak == "stop" else config.on_leak}
    splits = config.on_long_row is None and task is not None and task.splits_long_rows
    if config.on_long_row in (None, "stop") and not splits:
        changes["on_long_row"] = "skip"
    return config.model_copy(update=changes)


def survey(
    config: DataConfig, task: Task | None, data: Prepared, template: Template, max_length: int, progress: Progress
) -> Audit:
    """Encode what `read` returned and check it. `task` is that of the recipe, which may leave it open."""
    workers = workers_for(config, sum(len(data.side(side).examples) for side in SIDES))
    failure = ""
    lengths = array("I")
    try:
        encode(data, template, lenient(config, data.task), max_length, progress=progress, whole=lengths)
    except DataError as error:
        if data.rows or not data.refusals:  # else no row is left, and the refusals say why
            raise
        failure = str(error)
    progress.stage("checking the rows")
    found = audit(data, template, lengths=lengths, max_length=max_length, workers=workers, progress=progress)
    if data.refusals or config.on_leak == "stop":  # else nothing was skipped that could stop it
        try:  # the error of train under the policies of the recipe
            encode(load(config, task), template, config, max_length)
        except InputError as error:
            failure = str(error)
    if failure:
        total = f"\nIn all {len(data.refusals):,} rows are refused." if len(data.refusals) > 1 else ""
        found.add("stop", "rows", failure + total, [refusal["where"] for refusal in found.refusals])
    elif data.refusals:
        found.add("note", "rows", f"{len(data.refusals):,} rows are left out, as the recipe says")
    found.findings.sort(key=lambda finding: finding.level != "stop")
    return found
