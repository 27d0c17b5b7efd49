"""A run folder for an adapter that others made: then everything that takes a run takes it."""

import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.core.errors import InputError
from luthier.core.events import SILENT, Progress
from luthier.core.files import read_object, staged
from luthier.core.strict_json import to_json
from luthier.pipeline.measure import UNMEASURED
from luthier.pipeline.prepare import on_this_machine, prepare_data, tokenize, with_decisions
from luthier.pipeline.train import begun
from luthier.recipe.config import RunConfig
from luthier.recipe.identity import holds_run_of, local_path, with_found_formats
from luthier.recipe.origin import another_name
from luthier.runs.folder import RunFolder
from luthier.runs.remote import local


def as_run(
    given: str | os.PathLike[str],
    base: str | None,
    data: str | None,
    overrides: Sequence[str] = (),
    progress: Progress = SILENT,
    *,
    rows: bool = False,
) -> tuple[Path, list[str]]:
    """(the run folder `given`, or one made for the adapter in it; the overrides that remain for the run).

    For a URL it is a copy of the run there. Embedded dialogues stand in for `data`, unless `rows` to measure are
    wanted. InputError where a run is given a base.
    """
    path = local(given, progress)
    if (path / "recipe.yaml").is_file() or not (path / "adapter_config.json").is_file():
        RunFolder.existing(path)
        if own := " and ".join(name for name, value in (("--base", base), ("--data", data)) if value):
            raise InputError(f"{path} is a run, which has a base and data of its own", fix=f"leave out {own}")
        return path, list(overrides)
    left = [each for each in overrides if each.startswith("evaluate.")]
    changed = [each for each in overrides if each not in left]
    settings = {"method.from_adapter": str(path), "data.validation": "none", **({"model": base} if base else {})}
    if data or any(each.startswith("data") for each in changed):
        settings |= {"data": data} if data else {}
    elif rows:
        raise InputError(f"{path} is an adapter: on which rows is it to be measured?", fix="--data FILE")
    else:
        settings |= {"data": "builtin:assistant", "data.split": "heldout", "run": f"runs/{path.resolve().name}-prompts"}
    typed = [f"{key}={to_json(value, ensure_ascii=False)}" for key, value in settings.items()]
    return adopt(path, RunConfig.load(None, [*typed, *changed]), progress), left


def adopt(adapter: Path, config: RunConfig, progress: Progress = SILENT) -> Path:
    """Make the folder of a finished run whose weights are those of `adapter`; all rows of the data are held out.

    The same call again finds it. InputError where the adapter does not fit the base or the task.
    """
    from luthier.exports.base import write_words
    from luthier.methods.layers.loading import WEIGHTS, shapes_of, without_pickle
    from luthier.methods.layers.origin import refuse_other_task
    from luthier.models.load import parameter_counts, skeleton

    folder = RunFolder(local_path(adapter.resolve().name, config, None))
    config = config.model_copy(update={"run": str(folder.path)})
    config, settings = with_found_formats(folder, config), read_object(adapter / "adapter_config.json")
    if holds_run_of(folder, config) and folder.result.is_file():
        folder.refuse_another_start(adapter)
        return folder.path
    files = without_pickle(adapter)
    weights = sum(map(math.prod, shapes_of(files).values()))
    data = prepare_data(config, progress)
    config = with_decisions(config, data)
    with folder.held(), begun(config, folder, progress):
        placed = on_this_machine(config)
        tokens = tokenize(placed, data, progress, folder)
        refuse_other_task(settings, adapter, classify=tokens.labels is not None)
        folder.refuse_another_start(adapter)
        if what := another_name(adapter, config.model.path, tokens.source):
            progress.warn(what)
        empty: Any = skeleton(config.model, tokens.source, labels=tokens.labels)
        parameters, lr = parameter_counts(empty)[1] + weights, config.method.learning_rate(empty)
        config.method.load(empty, files)  # does it fit? No weight of the base is read for that
        data.hold_out_all()
        folder.write_json(folder.data, data.account())
        folder.write_jsonl(folder.held_out, data.held_out_lines())
        held = f"{data.validation.kept:,} rows to measure ({data.validation.tokens:,} tokens), task {data.task.name}"
        progress.note(f"{held}, format {data.format.name}, template: {data.template_source}")
        with staged(folder.path / "adapter", folder.ledger.run) as staging:
            for name in ("adapter_config.json", WEIGHTS):
                shutil.copy(files / name, staging)
            chats = tokens.template.end_ids if data.task.name == "chat" else ()
            write_words(tokens.template.tokenizer, sorted(chats), staging)
        result = {
            "run": str(folder.path),
            "model": config.model.path,
            "method": config.method.name,
            "task": data.task.name,
            "adopted": str(adapter),
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            **dict.fromkeys(("steps", "epochs", "train_rows", "kept_step", "train_seconds", "tokens_per_second"), 0),
            "kept_best": False,
            "batch_size": config.train.batch_size,
            "lr": lr,
            **UNMEASURED,
            "measured_on": data.held_out_side,
            "trainable": weights,
            "parameters": parameters,
            "weights_bytes": (files / WEIGHTS).stat().st_size,
        }
        folder.write_json(folder.result, result)
    return folder.path
