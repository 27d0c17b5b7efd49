"""A finished run, opened and measured again."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.core.errors import InputError, install, require_package
from luthier.core.events import SILENT, Progress
from luthier.core.files import write_json
from luthier.data.read import read_rows
from luthier.data.settings import DataConfig
from luthier.evaluation.harness import measure_harness
from luthier.pipeline.measure import against_base, base_model, base_scores, compare_with_base, subject_of
from luthier.pipeline.prepare import Loaded, load_base, on_this_machine, prepare_data, reopen, tokenize
from luthier.pipeline.train import write_result
from luthier.recipe.consent import Allow, require
from luthier.recipe.identity import read_recipe
from luthier.runs.folder import RunFolder


def open_run(
    path: Path,
    progress: Progress = SILENT,
    overrides: Sequence[str] = (),
    *,
    allow_code: Allow = False,
    measures: bool = True,
    drop_layers: int = 0,
) -> tuple[Loaded, RunFolder]:
    """A finished run with its tuned model, and its held-out rows as they were.

    `overrides` may change how it is measured (`evaluate.key=value`), nothing else. Code and a judge that the run's
    recipe names are refused unless `overrides` name them or `allow_code` does; without `measures` only the model's.
    `drop_layers` leaves the bottlenecks of so many of the lowest blocks out; InputError where the method has none.
    """
    folder = RunFolder.existing(path)
    if other := [each for each in overrides if not each.startswith("evaluate.")]:
        raise InputError(f"a finished run cannot change: {', '.join(other)}", fix="evaluate.KEY=VALUE, or retrain")
    weights, config = folder.weights(), read_recipe(folder, overrides)
    evaluate = config.evaluate
    if not measures:
        evaluate = evaluate.model_copy(update={"check": None, "judge": None})
    require(folder.recipe, allow_code, config.model, evaluate, typed=overrides, blocks=("evaluate",))
    config = config.model_copy(update={"evaluate": evaluate})
    for changed in folder.changed_check(evaluate):
        progress.warn(changed)
    config = on_this_machine(config)
    whole = config.method.saves == "model"
    loaded = load_base(config, reopen(config, folder, progress), folder, weights if whole else None)
    if not whole:
        loaded.model = config.method.load(loaded.model, weights)
    if drop_layers:
        from luthier.methods.layers.bottleneck import drop_lowest

        drop_lowest(loaded.model, drop_layers, str(path))
    loaded.model.eval()
    return loaded, folder


def evaluate(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    progress: Progress = SILENT,
    allow_code: Allow = False,
    drop_layers: int = 0,
) -> dict[str, Any]:
    """Measure a finished run again, base against tuned, and rewrite its report and result.

    `overrides` (`evaluate.generate=500`) change how it is measured this time. `allow_code` and
    `drop_layers`: see open_run; the result says how many.
    """
    loaded, folder = open_run(path, progress, overrides, allow_code=allow_code, drop_layers=drop_layers)
    result = dict(folder.read_json(folder.result))
    result.pop("drop_layers", None)
    result |= {"drop_layers": drop_layers} if drop_layers else {}
    folder.read_json(folder.data)  # the report needs it, and a fault in it should not cost the measuring
    subject = subject_of(loaded, progress)
    if subject is None:
        why = f"{path}: the run held no row out, so there is nothing to measure on"
        raise InputError(why, fix="data.validation=0.1")
    with folder.held():
        with base_model(loaded) as model:
            base = base_scores(loaded, subject_of(replace(loaded, model=model), progress), folder)
        progress.stage(f"evaluating the tuned model on {len(subject.examples)} held-out examples")
        result |= compare_with_base(subject, base, folder)
        return write_result(result, loaded.config, folder)


def evaluate_on(
    path: Path, rows: str, overrides: Sequence[str] = (), *, progress: Progress = SILENT, allow_code: Allow = False
) -> dict[str, Any]:
    """Measure a finished run on other rows, base against tuned, and leave the run as it is.

    `rows` is what data.path may be. Returns what result.json has of scores, with `predictions` beside it. The task, and
    with it the labels of a classifier, is that of the run; so is the format, where the rows have its columns.
    """
    loaded, folder = open_run(path, progress, overrides, allow_code=allow_code)
    config = loaded.config.model_copy(
        update={"data": DataConfig(path=rows, validation="none"), "task": loaded.data.task}
    )
    first = next((row for row in read_rows(config.data) if not row.problem), None)
    if first is not None and loaded.data.format.matches(first.values):
        own = config.data.model_copy(update={"format": loaded.data.format})
        config = config.model_copy(update={"data": own})
    data = prepare_data(config, progress)
    # A label that these rows lack may still be answered.
    data.labels = tuple(sorted(filter(None, {*loaded.data.labels, *loaded.data.examples.labels})))
    tokens = tokenize(config, data, progress)
    data.hold_out_all()
    loaded = Loaded(config, loaded.model, tokens)
    subject = subject_of(loaded, progress)
    if subject is None:
        raise InputError(f"{rows}: there is no row to measure on", fix="give at least one row")
    with TemporaryDirectory(prefix="luthier-") as place:
        aside = RunFolder(Path(place))  # the base's scores on these rows are no part of the run
        if folder.environment.is_file():
            shutil.copy(folder.environment, aside.environment)  # which base it is decides what the cache has of it
        with base_model(loaded) as model:
            base = base_scores(loaded, subject_of(replace(loaded, model=model), progress), aside)
    progress.stage(f"evaluating the tuned model on {len(subject.examples)} examples")
    result, predictions = against_base(subject, base)
    return {**result, "predictions": predictions}


def harness(
    path: Path,
    tasks: Sequence[str],
    *,
    folder_of_tasks: Path | None = None,
    limit: int | None = None,
    drop_layers: int = 0,
    progress: Progress = SILENT,
    allow_code: Allow = False,
) -> dict[str, Any]:
    """Tuned model and base on tasks of lm-evaluation-harness; writes harness.json in the run folder."""
    require_package("lm_eval", "lm-evaluation-harness is not installed", install("harness"))
    loaded, folder = open_run(path, progress, allow_code=allow_code, measures=False, drop_layers=drop_layers)
    with folder.held():
        base = None if loaded.config.model.init == "random" else base_model(loaded)
        tokenizer, sizes = loaded.template.tokenizer, (loaded.config.evaluate.batch_size, loaded.tokens.max_length)
        result = measure_harness(loaded.model, base, tokenizer, tasks, folder_of_tasks, limit, *sizes, progress)
        write_json(folder.harness, {"run": str(path), **result})
    return result
