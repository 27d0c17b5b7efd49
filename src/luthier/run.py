"""Train, check, evaluate, chat: the Python API is the command line. Nothing heavy is imported before a call."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config import RunConfig
from luthier.consent import Allow, require
from luthier.errors import InputError, Stopped
from luthier.folder import RunFolder, run_path, write_json, write_text
from luthier.measuring import UNMEASURED, base_again, compare, measure_base, subject_of, with_base
from luthier.origin import environment, redacted
from luthier.shell import after_training, public
from luthier.stages import (
    Given,
    Loaded,
    check_machine,
    decided,
    job_of,
    load_base,
    prepare_data,
    prove,
    question_of,
    refuse_other_rows,
    reopen,
    settle_run,
    tokenize,
)
from luthier.training.progress import Progress
from luthier.training.signals import Interrupted, StopRequest, watch
from luthier.training.space import explained

if TYPE_CHECKING:
    from luthier.choosing.question import Wish
    from luthier.comparing.shared import Contest
    from luthier.data.prepared import Prepared
    from luthier.measuring import Measured
    from luthier.training.session import Outcome


def train(
    config: RunConfig, *, recipe: Path | None = None, progress: Progress | None = None, given: Given | None = None
) -> dict[str, Any]:
    """Fine-tune as the recipe says and return what stands in result.json.

    The same call again goes on where the run stopped. Raises InputError for what the user can mend and
    Stopped after a signal, with everything saved. `given` is what a comparison has made for all of its runs.
    """
    progress = progress or Progress()
    folder = RunFolder(run_path(config, recipe))
    config = config.model_copy(update={"run": str(folder.path)})  # so that its recipe.yaml goes on in it
    with watch() as request:
        try:
            return _start(config, folder, progress, request, given)
        except Interrupted:
            raise Stopped("stopped; everything that was trained is saved", request.exit_code) from None
        except Exception as error:
            if (told := explained(error, folder.path)) is not None:
                raise told from error
            raise


def _start(
    config: RunConfig, folder: RunFolder, progress: Progress, request: StopRequest, given: Given | None
) -> dict[str, Any]:
    """Begin the run, or go on with it, alone in its folder."""
    check_machine(config)
    data = None if given is None else given.data
    config = folder.goes_on(config)
    if not folder.holds(config):
        data = data or prepare_data(config, progress)  # mistakes in the input must not leave a folder behind
        config = decided(config, data)
    elif folder.result.is_file():
        progress.note(f"{folder.path} is finished; delete it or choose another run=DIR to train anew")
        result = dict(folder.read_json(folder.result))
        return result | {"next": _next(config, folder, result["task"], result["lr"])}  # not what a file says
    with folder.held():
        from luthier.training.checkpoint import tidy

        goes_on = folder.start(config)
        tidy(folder.path)
        tidy(folder.checkpoints)
        if goes_on and (changed := [*folder.changes(), *folder.changed_check(config.evaluate)]):
            progress.warn(f"not as at the start, so the run may not go on bit for bit: {'; '.join(changed)}")
        try:
            return _train(config, data or prepare_data(config, progress), folder, progress, request, given)
        except Exception:
            if not goes_on and not folder.metrics.exists():  # nothing was trained yet, so nothing is lost
                folder.remove()
            raise


def check(config: RunConfig, out: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Read the data as `train` would and say what is in it: data.html, data.json and refused.jsonl in `out`.

    Loads a tokenizer and no weights. `stops` in what is returned: would train stop at this data?
    """
    from luthier.data.checks import survey
    from luthier.data.template import Template
    from luthier.models.load import load_tokenizer, locate, row_limit
    from luthier.reports import data_report

    progress = progress or Progress()
    data_report.refuse_run_folder(out)
    progress.stage("reading data")
    whole = config.data.model_copy(update={"streaming": False})  # a look at the data is a look at all of it
    data = survey.read(whole, config.task, progress)
    config = decided(config, data)
    whole = config.data.model_copy(update={"streaming": False})  # with the format that was found, to be read again
    model = config.model.model_copy(update={"init": "random"})  # its weights need not be there
    source = locate(model)
    progress.stage(f"tokenizing as {model.path} does")
    template = Template(load_tokenizer(model, source))
    limit = row_limit(model, source, template.tokenizer, config.train.max_length, config.method.positions)
    found = survey.survey(whole, config.task, data, template, limit, progress)
    return data_report.write(out, found, data, model.path, named="path" in model.model_fields_set)


def plan(config: RunConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Memory and time of a run, from its data and the base's config.json: no weights are read, nothing is written.

    Also what the recipe leaves open, decided as `train` would, and what other settings would need.
    """
    from luthier.planning.settle import alternatives, settle

    progress = progress or Progress()
    check_machine(config)
    data = prepare_data(config, progress)
    unloaded = config.model_copy(update={"model": config.model.model_copy(update={"init": "random"})})
    tokens = tokenize(unloaded, data, progress)  # its weights need not be there
    progress.stage("planning memory and time")
    job = job_of(config, data, tokens)
    settled = settle(job)
    return {
        "model": config.model.path,
        "method": config.method.name,
        "steps": job.steps,
        **settled.record(),
        "why": settled.why,
        "room": settled.plan and {"total": settled.plan.total, "free": settled.plan.free},
        "fits": settled.plan and settled.plan.fits,
        "alternatives": [
            {"change": change, "bytes": made.peak, "seconds": made.seconds, "fits": made.fits}
            for change, made in (alternatives(job, settled) if settled.plan is not None else [])
        ],
    }


def compare_methods(
    config: RunConfig, wish: Contest, *, recipe: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Every method of `wish` on the recipe's base and data, with the same tokens; returns what is in compare.json.

    The same call again goes on where it stopped.
    """
    from luthier.comparing.compare import compare

    return compare(config, wish, recipe=recipe, progress=progress)


def choose(
    config: RunConfig,
    wish: Wish | None = None,
    *,
    evidence: Sequence[Path] = (),
    given: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Which method to take, ranked, with reasons and their sources; reads the data and no weights, writes nothing.

    `given` is what the user typed of the recipe, for the commands to go on with.
    """
    from luthier.choosing import choose as choosing
    from luthier.choosing.question import Wish
    from luthier.choosing.words import next_commands

    progress, wish = progress or Progress(), wish or Wish()
    question, task = question_of(config, wish, list(evidence), progress)
    progress.stage("weighing methods")
    own = config.method if "method" in config.model_fields_set else None
    choice = choosing.choose(
        question,
        config.train,
        task=task,
        seed=config.seed,
        own=own,
        tell=lambda name: progress.note(f"planning {name}"),
    )
    data = None if wish.rows else config.data.path
    typed = [*(given or ["--model", config.model.path])]
    if not config.data.path or not given:
        typed += ["--data", config.data.path or "YOUR_FILE.jsonl"]
    commands = next_commands(choice, typed, packed=config.model.quantize)
    return choosing.record(choice, data=data, task=task.name, next_commands=commands)


def _train(
    config: RunConfig, data: Prepared, folder: RunFolder, progress: Progress, request: StopRequest, given: Given | None
) -> dict[str, Any]:
    from luthier.data import account, held_out
    from luthier.models.load import parameter_counts
    from luthier.planning import machine
    from luthier.training.precision import accelerator_for
    from luthier.training.randomness import seed
    from luthier.training.session import Session, total_steps

    accelerator = accelerator_for(config.model, config.train)
    tokens = tokenize(config, data, progress, folder) if given is None else given.tokens
    refuse_other_rows(config, data, folder)
    folder.write_json(folder.data, data.account())
    folder.write_jsonl(folder.held_out, held_out.lines(data))
    if data.refusals and data.stream is None:  # those of a stream are kept with each checkpoint
        folder.keep_refusals(data.refusals)
    account.say(data, folder.refused, progress)
    settled = settle_run(config, data, tokens, folder, progress)
    loaded = load_base(config, data, tokens, folder=folder) if given is None else given.load(config, folder)
    base = measure_base(loaded, folder, progress)

    seed(config.seed)
    total = total_steps(config.train, len(data.rows))
    lr = config.train.lr or config.method.learning_rate(loaded.model)
    if caveat := config.method.caveat(loaded.model):
        progress.warn(caveat)
    model = _attach(loaded, total, given)
    trainable, parameters = parameter_counts(model)
    progress.note(
        f"{config.method.name}: {trainable:,} of {parameters:,} parameters train ({trainable / parameters:.3%})"
    )
    settled = prove(settled, config, model, len(loaded.template.tokenizer), progress)
    if settled.train.gradient_checkpointing:
        # Reentrant checkpointing drops gradients where the inputs need none, which is so under every adapter.
        model.activation_checkpointing_enable({"use_reentrant": False})
    session = Session(
        model,
        data,
        config.method,
        settled.train,
        lr=lr,
        seed=config.seed,
        pad_id=loaded.template.tokenizer.pad_token_id or 0,
        accelerator=accelerator,
        folder=folder,
        progress=progress,
        pack=settled.pack,
    )
    seed(config.seed)
    session.resume()
    machine.watch_peak(accelerator.device.type)
    outcome = session.train(request)
    used = machine.peak(accelerator.device.type)
    if data.stream is not None:
        folder.write_json(folder.data, data.account())  # it is known only now
    loaded.model = model
    tuned = _save(loaded, folder, progress)
    result = _result(loaded, folder, outcome, base, progress, lr)
    result |= {"trainable": trainable, "parameters": parameters, "weights_bytes": tuned}
    plan = folder.read_json(folder.plan)["plan"] or {"bytes": None, "seconds": None}
    result["memory"] = {"planned": plan["bytes"], "measured": used}  # bytes, of the process or the device, in training
    result["time"] = {"planned": plan["seconds"], "measured": outcome.seconds}
    if given is not None:
        given.finished(loaded, folder)
    return _report(result, folder)


def _attach(loaded: Loaded, steps: int, given: Given | None) -> Any:
    """The method's model over the base."""
    classify = loaded.data.task.model_class == "classification"
    model = loaded.config.method.attach(loaded.model, steps=steps, classify=classify)
    if given is not None:
        given.own(model)
    return model


def _save(loaded: Loaded, folder: RunFolder, progress: Progress) -> int:
    """Write the tuned weights with tokenizer, template and generation settings; returns the weights' bytes."""
    from luthier.exports.layout import write_words
    from luthier.training.checkpoint import staged, weights_bytes

    progress.stage("saving")
    method, tokenizer = loaded.config.method, loaded.template.tokenizer
    target = folder.path / method.saves
    with staged(target, folder.ledger.run) as staging:
        method.save(loaded.model, staging)
        write_words(tokenizer, sorted(loaded.template.end_ids) if loaded.data.task.name == "chat" else (), staging)
    return weights_bytes(target)


def _result(
    loaded: Loaded, folder: RunFolder, outcome: Outcome, base: Measured, progress: Progress, lr: float
) -> dict[str, Any]:
    """Measure the tuned model and write predictions.jsonl; returns the body of result.json."""
    config, data = loaded.config, loaded.data
    result: dict[str, Any] = {
        "run": str(folder.path),
        "model": config.model.path,
        "method": config.method.name,
        "task": data.task.name,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "steps": outcome.steps,
        "batch_size": config.train.batch_size,
        "epochs": _epochs(outcome.steps * config.train.batch_size, data),
        "kept_step": outcome.kept_step,
        "kept_best": outcome.kept_best,
        "stopped_early": outcome.stopped_early,
        "train_seconds": outcome.seconds,
        "skipped_steps": outcome.skipped,
        "loss_spikes": outcome.spikes,
        "rows_per_pass": outcome.rows_per_pass,
        "tokens": outcome.tokens,
        "tokens_per_second": outcome.tokens / max(outcome.seconds, 1e-9),
        "lr": lr,
        "train_rows": data.train.kept,
        **UNMEASURED,
        "measured_on": data.held_out_side,
    }
    subject = subject_of(loaded, progress)
    if subject is not None:
        progress.stage(f"evaluating the tuned model on {len(subject.examples)} held-out examples")
        result |= compare(subject, base, folder)
    result["next"] = _next(config, folder, data.task.name, result["lr"])
    return result


def _epochs(taken: int, data: Prepared) -> float | None:
    """How often the data was seen; None where a stream did not come to its end."""
    if data.stream is None:
        return taken / len(data.rows)
    return taken / data.train.windows if data.stream.epoch else None


def _next(config: RunConfig, folder: RunFolder, task: str, lr: float) -> list[str]:
    return after_training(folder.path, folder.recipe, config.model.path, config.method.name, task, lr)


def _report(result: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Write loss.png, report.html and, last, result.json: its presence says that the run is finished."""
    from luthier.reports import loss_curve, run_report

    image = loss_curve.draw(
        folder.history(), f"{public(result['run'])}: {result['method']} on {public(result['model'])}"
    )
    folder.loss_png.write_bytes(image)
    lines = folder.predictions.read_text(encoding="utf-8").splitlines() if folder.predictions.is_file() else []
    page = run_report.render(
        result,
        folder.read_json(folder.data),
        image,
        redacted(folder.recipe.read_text(encoding="utf-8")),
        environment(),
        [json.loads(line) for line in lines],
    )
    write_text(folder.report, page)
    folder.write_json(folder.result, result)
    return result


def open_run(
    path: Path,
    progress: Progress | None = None,
    overrides: Sequence[str] = (),
    *,
    allow_code: Allow = False,
    measures: bool = True,
) -> tuple[Loaded, RunFolder]:
    """A finished run with its tuned model, and its held-out rows as they were.

    `overrides` may change how it is measured (`evaluate.key=value`), nothing else. Code and a judge that the run's
    recipe names are refused unless `overrides` name them or `allow_code` does; without `measures` only the model's.
    """
    progress = progress or Progress()
    folder = RunFolder.existing(path)
    if other := [each for each in overrides if not each.startswith("evaluate.")]:
        raise InputError(f"a finished run cannot change: {', '.join(other)}", mend="evaluate.KEY=VALUE, or train anew")
    weights, config = folder.weights(), folder.config(overrides)
    evaluate = config.evaluate
    if not measures:
        evaluate = evaluate.model_copy(update={"check": None, "judge": None})
    require(folder.recipe, allow_code, config.model, evaluate, typed=overrides, blocks=("evaluate",))
    config = config.model_copy(update={"evaluate": evaluate})
    for changed in folder.changed_check(evaluate):
        progress.warn(changed)
    check_machine(config)
    data, tokens = reopen(config, folder, progress)
    whole = config.method.saves == "model"
    loaded = load_base(config, data, tokens, weights if whole else None, folder)
    if not whole:
        loaded.model = config.method.load(loaded.model, weights)
    loaded.model.eval()
    return loaded, folder


def evaluate(
    path: Path, overrides: Sequence[str] = (), *, progress: Progress | None = None, allow_code: Allow = False
) -> dict[str, Any]:
    """Measure a finished run again, base against tuned, and rewrite its report and result.

    `overrides` (`evaluate.generate=500`) change how it is measured this time. `allow_code`: see open_run.
    """
    progress = progress or Progress()
    loaded, folder = open_run(path, progress, overrides, allow_code=allow_code)
    result = dict(folder.read_json(folder.result))
    folder.read_json(folder.data)  # the report needs it, and a fault in it should not cost the measuring
    subject = subject_of(loaded, progress)
    if subject is None:
        raise InputError(
            f"{path}: the run held no row out, so there is nothing to measure on", mend="data.validation=0.1"
        )
    with folder.held():
        base = base_again(loaded, folder, progress)
        progress.stage(f"evaluating the tuned model on {len(subject.examples)} held-out examples")
        result |= compare(subject, base, folder)
        result["next"] = _next(loaded.config, folder, loaded.data.task.name, result["lr"])
        return _report(result, folder)


def harness(
    path: Path,
    tasks: Sequence[str],
    *,
    folder_of_tasks: Path | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    allow_code: Allow = False,
) -> dict[str, Any]:
    """Tuned model and base on tasks of lm-evaluation-harness; writes harness.json in the run folder."""
    from luthier.evaluation.harness import check_harness, measure_harness

    check_harness()
    progress = progress or Progress()
    loaded, folder = open_run(path, progress, allow_code=allow_code, measures=False)
    with folder.held():
        result = measure_harness(
            loaded.model,
            with_base(loaded, progress),
            loaded.template.tokenizer,
            tasks,
            folder_of_tasks,
            limit,
            loaded.config.evaluate.batch_size,
            loaded.max_length,
            progress,
        )
        write_json(folder.harness, {"run": str(path), **result})
    return result
