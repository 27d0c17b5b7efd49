"""Train, check, evaluate, chat: the Python API is the command line. Nothing heavy is imported before a call."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config import RunConfig
from luthier.errors import InputError, Stopped
from luthier.folder import RunFolder, run_path, write_json, write_jsonl, write_text
from luthier.origin import environment, redacted
from luthier.training.progress import Progress
from luthier.training.signals import Interrupted, StopRequest, watch
from luthier.training.space import explained

if TYPE_CHECKING:
    from torch import nn

    from luthier.data.prepared import Prepared
    from luthier.data.template import Template
    from luthier.evaluation.base import Record, Subject
    from luthier.training.session import Outcome


@dataclass(slots=True)
class Loaded:
    """Base model, template and data of a run, ready to train or to measure."""

    config: RunConfig
    model: nn.Module
    template: Template
    data: Prepared
    max_length: int


def train(config: RunConfig, *, recipe: Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Fine-tune as the recipe says and return what stands in result.json.

    The same call again goes on where the run stopped. Raises InputError for what the user can mend and
    Stopped after a signal, with everything saved.
    """
    progress = progress or Progress()
    folder = RunFolder(run_path(config, recipe))
    config = config.model_copy(update={"run": str(folder.path)})  # so that its recipe.yaml goes on in it
    with watch() as request:
        try:
            return _start(config, folder, progress, request)
        except Interrupted:
            raise Stopped("stopped; everything that was trained is saved", request.exit_code) from None
        except Exception as error:
            if (told := explained(error)) is not None:
                raise told from error
            raise


def _start(config: RunConfig, folder: RunFolder, progress: Progress, request: StopRequest) -> dict[str, Any]:
    """Begin the run, or go on with it, alone in its folder."""
    check_machine(config)
    data = None
    if not folder.holds(config):
        data = prepare_data(config, progress)  # mistakes in the input must not leave a folder behind
    elif folder.result.is_file():
        progress.note(f"{folder.path} is finished; delete it or choose another run=DIR to train anew")
        return dict(json.loads(folder.result.read_text(encoding="utf-8")))
    with folder.held():
        from luthier.training.checkpoint import tidy

        goes_on = folder.start(config)
        tidy(folder.path)
        tidy(folder.checkpoints)
        if goes_on and (changed := folder.changes()):
            progress.warn(f"not as at the start, so the run may not go on bit for bit: {'; '.join(changed)}")
        try:
            return _train(config, data or prepare_data(config, progress), folder, progress, request)
        except Exception:
            if not goes_on and not folder.metrics.exists():  # nothing was trained yet, so nothing is lost
                folder.remove()
            raise


def check_machine(config: RunConfig) -> None:
    """Refuse what this machine cannot serve, before anything is read or downloaded."""
    from luthier.models.load import check_quantize, device
    from luthier.training.session import check_precision

    device(config.model)
    check_precision(config.model, config.train)
    check_quantize(config.model, config.train.optimizer)


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
    model = config.model.model_copy(update={"init": "random"})  # its weights need not be there
    source = locate(model)
    progress.stage(f"tokenizing as {model.path} does")
    template = Template(load_tokenizer(model, source))
    limit = row_limit(model, source, template.tokenizer, config.train.max_length, config.method.positions)
    found = survey.survey(whole, config.task, data, template, limit, progress)
    return data_report.write(out, found, data, model.path, named="path" in model.model_fields_set)


def prepare_data(config: RunConfig, progress: Progress) -> Prepared:
    """Read all rows. Comes before the model: a mistake in the data should not cost a download."""
    progress.stage("reading data")
    from luthier.data.prepare import load

    return load(config.data, config.task, progress)


def _train(
    config: RunConfig, data: Prepared, folder: RunFolder, progress: Progress, request: StopRequest
) -> dict[str, Any]:
    from luthier.data import account
    from luthier.models.load import parameter_counts
    from luthier.training.packing import prove_packing
    from luthier.training.randomness import seed
    from luthier.training.session import Session, accelerator_for, total_steps

    accelerator = accelerator_for(config.model, config.train)
    loaded = load_all(config, data, progress, folder=folder)
    if folder.data.is_file() and json.loads(folder.data.read_text())["fingerprint"] != data.fingerprint:
        raise InputError(
            f"{config.data.path}: the rows have changed since {folder.path} was started", mend="run=ANOTHER_DIR"
        )
    write_json(folder.data, data.account())
    if data.refusals and data.stream is None:  # those of a stream are kept with each checkpoint
        folder.keep_refusals(data.refusals)
    account.say(data, folder.refused, progress)
    base = _measure_base(loaded, folder, progress)

    seed(config.seed)
    total = total_steps(config.train, len(data.rows))
    lr = config.train.lr or config.method.learning_rate(loaded.model)
    if caveat := config.method.caveat(loaded.model):
        progress.warn(caveat)
    model = config.method.attach(loaded.model, steps=total, classify=data.task.model_class == "classification")
    trainable, parameters = parameter_counts(model)
    progress.note(
        f"{config.method.name}: {trainable:,} of {parameters:,} parameters train ({trainable / parameters:.3%})"
    )
    if config.train.packing:
        prove_packing(model, len(loaded.template.tokenizer))
    if config.train.gradient_checkpointing:
        _checkpoint_activations(model)
    session = Session(
        model, data, config.method, config.train, lr=lr, seed=config.seed,
        pad_id=loaded.template.tokenizer.pad_token_id or 0, accelerator=accelerator, folder=folder, progress=progress,
        pack=loaded.max_length if config.train.packing else None,
    )  # fmt: skip
    seed(config.seed)
    session.resume()
    outcome = session.train(request)
    if data.stream is not None:
        write_json(folder.data, data.account())  # it is known only now
    loaded.model = model
    tuned = _save(loaded, folder, progress)
    result = _result(loaded, folder, outcome, base, progress, lr)
    result |= {"trainable": trainable, "parameters": parameters, "weights_bytes": tuned}
    return _report(result, folder)


def load_all(
    config: RunConfig, data: Prepared, progress: Progress, weights: Path | None = None, folder: RunFolder | None = None
) -> Loaded:
    """Tokenizer, encoded rows and base model. `weights` is the folder of a whole tuned model to load instead.

    InputError where the base is not the one that the run in `folder` was started from.
    """
    import torch

    from luthier.data.checks.mask import refuse_endless
    from luthier.data.encode import encode
    from luthier.data.template import Template
    from luthier.models.load import load_model, load_tokenizer, locate, row_limit
    from luthier.training.packing import check_packing

    source = locate(config.model)
    progress.stage(f"loading {config.model.path}")
    local = Path(source).is_dir()  # a hub's copy may be an older one until the model is loaded
    if folder is not None and local:
        folder.refuse_another_base(config.model, source)
    template = Template(load_tokenizer(config.model, source))
    torch.manual_seed(config.seed)  # a classification head starts random
    labels = tuple(getattr(data.task, "labels", ())) if data.task.model_class == "classification" else None
    max_length = row_limit(config.model, source, template.tokenizer, config.train.max_length, config.method.positions)
    # Before the weights: it can still stop the run.
    encode(data, template, config.data, max_length, progress=progress)
    refuse_endless(data, template)
    if config.train.packing:
        check_packing(data.task, config.method)
    check_method(config, source, labels)
    model = load_model(config.model, str(weights or source), labels=labels, tokenizer=template.tokenizer)
    if folder is not None and not local:
        folder.refuse_another_base(config.model, source)
    return Loaded(config, model, template, data, max_length)


def check_method(config: RunConfig, source: str, labels: tuple[str, ...] | None) -> None:
    """Refuse a method that cannot do what the recipe asks of this model, on its shape alone, before any weights."""
    from luthier.models.load import quantization, skeleton

    model = skeleton(config.model, source, labels=labels)
    config.method.check(model, classify=labels is not None, quantize=quantization(config.model, model.config))


def _checkpoint_activations(model: nn.Module) -> None:
    # Reentrant checkpointing drops gradients where the inputs need none, which is so under every adapter.
    model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]


def _subject(loaded: Loaded) -> Subject | None:
    """The test rows, else the validation rows, with the model as it is now; None where there are none."""
    from luthier.evaluation.base import Subject

    data, settings = loaded.data, loaded.config.evaluate
    _, examples, rows = data.side("test" if data.test_rows else "validation")
    count = len(examples) if settings.rows is None else settings.rows
    owner = [number for number in rows.owner if number < count]  # in order
    if not owner:
        return None
    return Subject(
        model=loaded.model, template=loaded.template, task=data.task,
        examples=list(examples[:count]), rows=rows[: len(owner)], owner=owner,
        batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens, generate=settings.generate,
        max_length=loaded.max_length,
    )  # fmt: skip


def _measure_base(loaded: Loaded, folder: RunFolder, progress: Progress) -> list[Record]:
    """Records of the untouched base, kept in before.json so that a resumed run need not measure again."""
    from luthier.evaluation.score import measure

    if folder.before.is_file():
        return list(json.loads(folder.before.read_text(encoding="utf-8")))
    subject = _subject(loaded) if loaded.config.evaluate.before and loaded.config.model.init == "pretrained" else None
    if subject is None:
        return []
    progress.stage(f"evaluating the base on {len(subject.examples)} held-out examples")
    records = measure(subject)
    write_json(folder.before, records)
    return records


def _save(loaded: Loaded, folder: RunFolder, progress: Progress) -> int:
    """Write the tuned weights with tokenizer, template and generation settings; returns the weights' bytes."""
    from transformers import GenerationConfig

    from luthier.training.checkpoint import staged
    from luthier.training.session import weights_bytes

    progress.stage("saving")
    method, tokenizer = loaded.config.method, loaded.template.tokenizer
    target = folder.path / method.saves
    with staged(target) as staging:
        method.save(loaded.model, staging)
        tokenizer.save_pretrained(staging)
        if loaded.data.task.name == "chat":  # who loads it elsewhere must stop at the end of the answer too
            GenerationConfig(
                eos_token_id=sorted(loaded.template.end_ids), pad_token_id=tokenizer.pad_token_id
            ).save_pretrained(staging)
    return weights_bytes(target)


def _result(
    loaded: Loaded, folder: RunFolder, outcome: Outcome, base: list[Record], progress: Progress, lr: float
) -> dict[str, Any]:
    """Measure the tuned model and write predictions.jsonl; returns the body of result.json."""
    config, data = loaded.config, loaded.data
    result: dict[str, Any] = {
        "run": str(folder.path), "model": config.model.path, "method": config.method.name, "task": data.task.name,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"), "steps": outcome.steps, "batch_size": config.train.batch_size,
        "epochs": _epochs(outcome.steps * config.train.batch_size, data), "kept_step": outcome.kept_step,
        "kept_best": outcome.kept_best, "stopped_early": outcome.stopped_early, "train_seconds": outcome.seconds,
        "skipped_steps": outcome.skipped, "loss_spikes": outcome.spikes, "rows_per_pass": outcome.rows_per_pass,
        "tokens": outcome.tokens, "tokens_per_second": outcome.tokens / max(outcome.seconds, 1e-9),
        "lr": lr, "train_rows": data.train.kept,
        "base": {}, "tuned": {}, "difference": {}, "validation_examples": 0,
        "measured_on": "test" if data.test_rows else "validation",
    }  # fmt: skip
    subject = _subject(loaded)
    if subject is not None:
        progress.stage(f"evaluating the tuned model on {len(subject.examples)} held-out examples")
        result |= compare(subject, base, folder)
    result["next"] = _next_commands(config, folder, data.task.name, result["lr"])
    return result


def compare(subject: Subject, base: list[Record], folder: RunFolder) -> dict[str, Any]:
    """Measure `subject`, set it against the base's records and write predictions.jsonl."""
    from luthier.evaluation.score import differences, evaluations, measure, scores

    tuned, chosen = measure(subject), evaluations(subject)
    both = len(base) == len(tuned)
    predictions = [
        {"where": e.where, "text": e.text or "\n".join(m.said for m in e.messages[:-1]), "answer": e.answer,
         "base": base[i] if both else {}, "tuned": record}
        for i, (e, record) in enumerate(zip(subject.examples, tuned, strict=True))
    ]  # fmt: skip
    write_jsonl(folder.predictions, predictions)
    return {
        "validation_examples": len(tuned),
        "base": scores(base, chosen) if both else {},
        "tuned": scores(tuned, chosen),
        "difference": differences(base, tuned, chosen) if both else {},
    }


def _epochs(taken: int, data: Prepared) -> float | None:
    """How often the data was seen; None where a stream did not come to its end."""
    if data.stream is None:
        return taken / len(data.rows)
    return taken / data.train.windows if data.stream.epoch else None


def _next_commands(config: RunConfig, folder: RunFolder, task: str, lr: float) -> list[str]:
    """Three commands to go on with: use it, compare it, your own data or another setting."""
    path = folder.path
    if task == "classify":
        use = [f"luthier evaluate {path}", f"luthier train {folder.recipe} run={path}-2 train.lr={lr / 2:g}"]
    else:
        use = [f"luthier chat {path}", f"luthier chat {path} --base"]
    return [*use, f"luthier train --model {config.model.path} --data YOUR_FILE.jsonl --method {config.method.name}"]


def _report(result: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Write loss.png, report.html and, last, result.json: its presence says that the run is finished."""
    from luthier.reports import loss_curve, run_report

    image = loss_curve.draw(folder.history(), f"{result['run']}: {result['method']} on {result['model']}")
    folder.loss_png.write_bytes(image)
    lines = folder.predictions.read_text(encoding="utf-8").splitlines() if folder.predictions.is_file() else []
    page = run_report.render(
        result, json.loads(folder.data.read_text(encoding="utf-8")), image,
        redacted(folder.recipe.read_text(encoding="utf-8")), environment(), [json.loads(line) for line in lines],
    )  # fmt: skip
    write_text(folder.report, page)
    write_json(folder.result, result)
    return result


def open_run(path: Path, progress: Progress | None = None) -> tuple[Loaded, RunFolder]:
    """A finished run with its tuned model, and its held-out rows as they were."""
    progress = progress or Progress()
    folder = RunFolder.existing(path)
    weights, config = folder.weights(), folder.config()
    data = prepare_data(config, progress)
    whole = config.method.saves == "model"
    loaded = load_all(config, data, progress, weights if whole else None, folder)
    if not whole:
        loaded.model = config.method.load(loaded.model, weights)
    loaded.model.eval()
    return loaded, folder


def evaluate(path: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Measure a finished run anew, base against tuned, and rewrite its report and result."""
    progress = progress or Progress()
    loaded, folder = open_run(path, progress)
    subject = _subject(loaded)
    if subject is None:
        raise InputError(
            f"{path}: the run held no row out, so there is nothing to measure on", mend="data.validation=0.1"
        )
    with folder.held():
        base = _base_again(loaded, subject, folder, progress)
        progress.stage(f"evaluating the tuned model on {len(subject.examples)} held-out examples")
        result = dict(json.loads(folder.result.read_text(encoding="utf-8")))
        return _report(result | compare(subject, base, folder), folder)


def _base_again(loaded: Loaded, subject: Subject, folder: RunFolder, progress: Progress) -> list[Record]:
    """The untouched base on the same rows: with the adapter switched off, or loaded anew where there is none."""
    from luthier.evaluation.score import measure

    if loaded.config.model.init == "random":
        return []
    progress.stage(f"evaluating the base on {len(subject.examples)} held-out examples")
    switch = loaded.config.method.disabled(loaded.model)
    if switch is not None:
        with switch:
            return measure(subject)
    base = load_all(loaded.config, prepare_data(loaded.config, Progress()), progress)
    plain = _subject(base)
    return measure(plain) if plain is not None else []
