"""Train a run, or resume it: its stages from top to bottom. Nothing heavy is imported before the call."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from luthier.core.events import SILENT, Guarded, Listeners, Progress
from luthier.core.files import staged, tidy
from luthier.core.ranks import Ranks, here, joined, started
from luthier.core.resources import explained
from luthier.core.shell import after_training
from luthier.core.signals import StopRequest, watch
from luthier.pipeline.follow import (
    SHARDED,
    base_on_all,
    divided_base,
    follow_leader,
    must_agree,
    refuse_own_disks,
    refuse_sharding,
    uneven,
    unshardable,
    with_parallel,
)
from luthier.pipeline.interim import InterimPage, write_page
from luthier.pipeline.measure import UNMEASURED, compare_with_base, measure_base, subject_of
from luthier.pipeline.prepare import (
    Loaded,
    SharedInputs,
    load_base,
    on_this_machine,
    prepare_data,
    refuse_other_rows,
    resolve_run,
    run_settings,
    tokenize,
    with_decisions,
)
from luthier.pipeline.samples import Samples
from luthier.pipeline.track import by_name, followed
from luthier.recipe.config import RunConfig
from luthier.recipe.identity import begin_run, holds_run_of, run_path, with_found_formats
from luthier.recipe.origin import another_name
from luthier.recipe.parse import RecipeSource
from luthier.runs.folder import RunFolder
from luthier.runs.remote import is_url, mirrored
from luthier.tracking.base import Tracker

if TYPE_CHECKING:
    from accelerate import Accelerator

    from luthier.data.prepared import Prepared
    from luthier.pipeline.measure import Measured
    from luthier.planning.resolve import ResolvedSettings
    from luthier.training.trainer import Trainer


def train(
    config: RunConfig,
    *,
    recipe: RecipeSource | None = None,
    progress: Progress = SILENT,
    shared: SharedInputs | None = None,
    trackers: Sequence[Tracker] = (),
) -> dict[str, Any]:
    """Fine-tune as the recipe says and return what stands in result.json.

    The same call again resumes where the run stopped. Raises InputError for what the user can fix and Stopped after a
    signal, with everything saved. `shared` is what a comparison has made for all of its runs; `trackers` are objects
    that follow the run beside those of train.track.
    """
    folder = RunFolder(run_path(config, recipe))
    with _stoppable(folder) as request:
        if not is_url(config.run):
            config = config.model_copy(update={"run": str(folder.path)})  # so that its recipe.yaml resumes in it
        placed = on_this_machine(config)
        with joined(placed.model.device, must_agree(config) if started() else {}) as ranks:
            if not ranks.leads:
                follow_leader(placed, ranks, request)
                return {}
            if ranks.several and config.train.parallel in SHARDED:
                refuse_sharding(unshardable(placed, config.model.quantize))
                refuse_sharding(uneven(ranks) if config.train.parallel == "hsdp" else "")
            refuse_own_disks(folder.path, ranks)
            with mirrored(config.run, folder.path, progress) as listener:
                return _lead(config, placed, folder, request, ranks, listener, shared, trackers)


def _lead(
    config: RunConfig,
    placed: RunConfig,
    folder: RunFolder,
    request: StopRequest,
    ranks: Ranks,
    progress: Progress,
    shared: SharedInputs | None,
    trackers: Sequence[Tracker],
) -> dict[str, Any]:
    """The run itself. `placed` is the recipe with device and precision decided."""
    from luthier.planning import machine
    from luthier.training.step import accelerator_on

    config = with_found_formats(folder, config)
    for each in trackers:
        each.check()
    data = shared.tokens.data if shared is not None else None
    if not holds_run_of(folder, config):
        data = data or prepare_data(config, progress)  # mistakes in the input must not leave a folder behind
        config = with_decisions(config, data)
    elif folder.result.is_file():
        progress.note(f"{folder.path} is finished; delete it or choose another run=DIR to retrain")
        return with_next(folder.read_json(folder.result), config, folder)
    chosen = by_name(config.train.track, trackers)
    with folder.held(), begun(config, folder, progress), followed(folder, chosen, progress) as everyone:
        progress = everyone
        data = data or prepare_data(config, progress)
        config = config.model_copy(update={"model": placed.model, "train": placed.train})
        accelerator = accelerator_on(config.model.device, config.train.precision)
        tokens = shared.tokens if shared is not None else tokenize(config, data, progress, folder)
        _keep_data(config, data, folder, progress)
        if start := getattr(config.method, "from_adapter", ""):
            folder.refuse_another_start(Path(start).expanduser())
            if what := another_name(Path(start).expanduser(), config.model.path, tokens.source):
                progress.warn(what)
        resolved = resolve_run(config, tokens, folder, progress)
        if ranks.several:
            resolved = with_parallel(resolved, config, tokens.source, folder, ranks, progress)
        divided = ranks.several and resolved.train.parallel in SHARDED
        place = "cpu" if divided else ""
        alone = partial(load_base, config, tokens, folder, place=place)
        load = partial(shared.load, config, folder) if shared else alone
        loaded = base_on_all(config, tokens, ranks, divided, load)
        with divided_base(loaded, resolved.train, ranks):
            base = measure_base(loaded, folder, progress)
        trainer, counts = _trainer(loaded, resolved, accelerator, folder, progress, shared)
        page = _interim_page(loaded, trainer, counts, base)
        if Samples.wanted(loaded):
            samples = Guarded("of the samples", Samples(loaded, loaded.model, folder), trainer.progress)
            trainer.progress = Listeners(trainer.progress, samples)
        machine.watch_peak(config.model.device)
        try:
            outcome = trainer.train(request)
        except Exception:
            with suppress(Exception):  # why the run stopped matters more
                page.write()
            raise
        memory = machine.peak(config.model.device)
        result = _result(loaded, trainer, outcome, memory, counts, base)
        if shared is not None:
            shared.finished(loaded, folder)
        return write_result(result, config, folder)


@contextmanager
def _stoppable(folder: RunFolder) -> Iterator[StopRequest]:
    """Signals become Stopped; a full disk, exhausted memory and closed files say what to do about it."""
    with watch() as request:
        try:
            yield request
        except Exception as error:
            if (found := explained(error, folder.path)) is not None:
                raise found from error
            raise


@contextmanager
def begun(config: RunConfig, folder: RunFolder, progress: Progress) -> Iterator[None]:
    """Write what a run begins with, or resume it. A run that fails before its first step leaves no folder behind."""
    resumes = begin_run(folder, config)
    tidy(folder.path)
    tidy(folder.checkpoints)
    if resumes and (changed := [*folder.changes(), *folder.changed_check(config.evaluate)]):
        progress.warn(f"not as at the start, so the run may not resume bit for bit: {'; '.join(changed)}")
    try:
        yield
    except Exception:
        if not resumes and not folder.metrics.exists():  # nothing was trained yet, so nothing is lost
            folder.remove()
        raise


def _keep_data(config: RunConfig, data: "Prepared", folder: RunFolder, progress: Progress) -> None:
    """Write data.json, held_out.jsonl and refused.jsonl. InputError where the run was started with other rows."""
    refuse_other_rows(config, data, folder)
    folder.write_json(folder.data, data.account())
    folder.write_jsonl(folder.held_out, data.held_out_lines())
    if data.refusals and data.stream is None:  # those of a stream are kept with each checkpoint
        folder.keep_refusals(data.refusals)
    data.report(folder.refused, progress)


def _trainer(
    loaded: Loaded,
    resolved: "ResolvedSettings",
    accelerator: "Accelerator",
    folder: RunFolder,
    progress: Progress,
    shared: SharedInputs | None,
) -> "tuple[Trainer, tuple[int, int]]":
    """(trainer with the model of the method, where the last checkpoint left it; (trainable, all) parameters)."""
    from luthier.models.load import parameter_counts
    from luthier.training.checkpoint import seed
    from luthier.training.trainer import Trainer

    config, method, base = loaded.config, loaded.config.method, loaded.model
    of_base = set(base.parameters())
    seed(config.seed)
    if caveat := method.caveat(base):
        progress.warn(caveat)
    loaded.model = method.attach(base, steps=resolved.steps, classify=loaded.tokens.labels is not None)
    if shared is not None:
        shared.own(loaded.model)
    trained, parameters = parameter_counts(loaded.model)
    progress.note(f"{method.name}: {trained:,} of {parameters:,} parameters train ({trained / parameters:.3%})")
    settings = run_settings(resolved, loaded, base, progress)
    longest = max(loaded.data.rows.lengths) if loaded.data.stream is None else None
    here().order("attach", settings, longest, loaded.tokens.labels is not None)
    pad_id = loaded.template.tokenizer.pad_token_id or 0
    trainer = Trainer(loaded.model, loaded.data, method, settings, accelerator, pad_id, folder, progress, of_base)
    seed(config.seed)
    trainer.resume()
    return trainer, (trained, parameters)


def _interim_page(loaded: Loaded, trainer: "Trainer", counts: tuple[int, int], base: "Measured") -> InterimPage:
    """What writes the run's page while it trains; it listens to the trainer from now on and cannot fail the run."""
    config, data = loaded.config, loaded.data
    facts: dict[str, Any] = {"run": str(trainer.folder.path), "model": config.model.path, "method": config.method.name}
    facts |= {"task": data.task.name, "batch_size": config.train.batch_size, "measured_on": data.held_out_side}
    facts |= {"trainable": counts[0], "parameters": counts[1]}
    page = InterimPage(config, trainer.folder, facts, base.records)
    trainer.progress = Listeners(trainer.progress, Guarded("of the page", page, trainer.progress))
    return page


def _result(
    loaded: Loaded, trainer: "Trainer", outcome: dict[str, Any], memory: int, counts: tuple[int, int], base: "Measured"
) -> dict[str, Any]:
    """Save the tuned weights, measure them and write predictions.jsonl; returns the body of result.json."""
    config, data, folder, progress = loaded.config, loaded.data, trainer.folder, trainer.progress
    taken = outcome["steps"] * config.train.batch_size
    epochs: float | None = taken / len(data.rows) if data.stream is None else None
    if data.stream is not None:
        folder.write_json(folder.data, data.account())  # it is known only now
        epochs = taken / data.train.windows if data.stream.epoch else None  # unknown until a stream has ended once
    trained, parameters = counts
    plan = folder.read_json(folder.plan)["plan"] or {"bytes": None, "seconds": None}
    result: dict[str, Any] = {
        "run": str(folder.path),
        "model": config.model.path,
        "method": config.method.name,
        "task": data.task.name,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "steps": outcome["steps"],
        "batch_size": config.train.batch_size,
        "epochs": epochs,
        **outcome,
        "lr": trainer.config.lr,
        "head_lr": trainer.config.head_lr,
        "train_rows": data.train.kept,
        **UNMEASURED,
        "measured_on": data.held_out_side,
        "trainable": trained,
        "parameters": parameters,
        "weights_bytes": save_weights(
            loaded, folder.path / config.method.saves, folder.ledger.run, progress, trainer.tuned.save_whole
        ),
        "memory": {"planned": plan["bytes"], "measured": memory},  # bytes, of the process or the device, in training
        "time": {"planned": plan["seconds"], "measured": outcome["train_seconds"]},
    }
    context = subject_of(loaded, progress)
    if context is not None:
        progress.stage(f"evaluating the tuned model on {len(context.examples)} held-out examples")
        result |= compare_with_base(context, base, folder)
    return result


def save_weights(
    loaded: Loaded,
    target: Path,
    run: str,
    progress: Progress = SILENT,
    save: Callable[[Path], None] | None = None,
) -> int:
    """Write the tuned weights with tokenizer, template and generation settings; returns the weights' bytes.

    The folder `target` is replaced as a whole; its manifest names the `run`. `save` writes them in the method's place.
    """
    from luthier.exports.base import write_words

    progress.stage("saving the weights")
    tokenizer = loaded.template.tokenizer
    with staged(target, run) as staging:
        save(staging) if save is not None else loaded.config.method.save(loaded.model, staging)
        write_words(tokenizer, sorted(loaded.template.end_ids) if loaded.data.task.name == "chat" else (), staging)
    return sum(path.stat().st_size for path in target.glob("*.safetensors"))


def before_first_step(config: RunConfig, *, progress: Progress = SILENT) -> "tuple[Loaded, Trainer]":
    """What `train` has when its first step comes, for a loop of one's own: nothing is measured, and no run is begun.

    Raises InputError for what the user can fix.
    """
    from luthier.training.step import accelerator_on

    with TemporaryDirectory(prefix="luthier-") as place:
        folder = RunFolder(Path(place))
        config = on_this_machine(config)
        data = prepare_data(config, progress)
        config = with_decisions(config, data)
        accelerator = accelerator_on(config.model.device, config.train.precision)
        tokens = tokenize(config, data, progress)
        resolved = resolve_run(config, tokens, folder, progress)
        loaded = load_base(config, tokens)
        trainer, _ = _trainer(loaded, resolved, accelerator, folder, progress, None)
        return loaded, trainer


def with_next(result: Mapping[str, Any], config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """A result with its folder and the commands that follow it: never those that stand in a file."""
    names = config.model.path, config.method.name, result["task"], result["lr"]
    return {**result, "run": str(folder.path), "next": after_training(folder.path, folder.recipe, *names)}


def write_result(result: dict[str, Any], config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """Write loss.png, report.html and, last, result.json: its presence says that the run is finished."""
    result = with_next(result, config, folder)
    write_page(result, config, folder)
    folder.write_json(folder.result, result)
    return result
