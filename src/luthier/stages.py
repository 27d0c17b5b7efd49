"""What every way into a run begins with: data, tokens, what is still open decided, and the base model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.config import RunConfig
from luthier.folder import RunFolder, write_json
from luthier.training.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from luthier.data.prepared import Prepared
    from luthier.data.template import Template
    from luthier.planning.settle import Job, Settled


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a model's tokenizer and config.json make of the data; its weights are not there yet."""

    template: Template
    source: str
    """Folder or hub id of the base."""
    labels: tuple[str, ...] | None
    """Of a classifier."""
    max_length: int
    """Longest row in tokens."""


@dataclass(slots=True)
class Loaded:
    """Base model, template and data of a run, ready to train or to measure."""

    config: RunConfig
    model: nn.Module
    template: Template
    data: Prepared
    max_length: int


def check_machine(config: RunConfig) -> None:
    """Refuse what this machine cannot serve, before anything is read or downloaded."""
    from luthier.evaluation.score import check_settings
    from luthier.models.load import check_quantize, device
    from luthier.training.session import check_precision

    device(config.model)
    check_precision(config.model, config.train)
    check_quantize(config.model, config.train.optimizer)
    check_settings(config.evaluate)
    if config.train.compile:
        from luthier.ops.compiled import check_compile

        check_compile(device(config.model))


def prepare_data(config: RunConfig, progress: Progress) -> Prepared:
    """Read all rows. Comes before the model: a mistake in the data should not cost a download."""
    progress.stage("reading data")
    from luthier.data.prepare import load

    return load(config.data, config.task, progress)


def tokenize(config: RunConfig, data: Prepared, progress: Progress, folder: RunFolder | None = None) -> Tokens:
    """Encode the rows in place, and refuse what cannot be trained. Comes before any weights: it can stop the run.

    InputError where the base is not the one that the run in `folder` was started from.
    """
    from luthier.data.checks.mask import refuse_endless
    from luthier.data.encode import encode
    from luthier.data.template import Template
    from luthier.models.load import load_tokenizer, locate, row_limit

    source = locate(config.model)
    progress.stage(f"loading {config.model.path}")
    if folder is not None and Path(source).is_dir():  # a hub's copy may be an older one until the model is loaded
        folder.refuse_another_base(config.model, source)
    template = Template(load_tokenizer(config.model, source))
    labels = tuple(getattr(data.task, "labels", ())) if data.task.model_class == "classification" else None
    max_length = row_limit(config.model, source, template.tokenizer, config.train.max_length, config.method.positions)
    encode(data, template, config.data, max_length, progress=progress)
    refuse_endless(data, template)
    check_method(config, source, labels)
    return Tokens(template, source, labels, max_length)


def load_base(
    config: RunConfig, data: Prepared, tokens: Tokens, weights: Path | None = None, folder: RunFolder | None = None
) -> Loaded:
    """The base model. `weights` is the folder of a whole tuned model to load instead."""
    import torch

    from luthier.models.load import load_model

    torch.manual_seed(config.seed)  # a classification head starts random
    model = load_model(
        config.model, str(weights or tokens.source), labels=tokens.labels, tokenizer=tokens.template.tokenizer
    )
    if folder is not None and not Path(tokens.source).is_dir():
        folder.refuse_another_base(config.model, tokens.source)
    return Loaded(config, model, tokens.template, data, tokens.max_length)


def check_method(config: RunConfig, source: str, labels: tuple[str, ...] | None) -> None:
    """Refuse a method that cannot do what the recipe asks of this model, on its shape alone, before any weights."""
    from luthier.models.load import quantization, skeleton

    model = skeleton(config.model, source, labels=labels)
    config.method.check(model, classify=labels is not None, quantize=quantization(config.model, model.config))


def job_of(config: RunConfig, data: Prepared, tokens: Tokens) -> Job:
    """What is to be planned."""
    from luthier.planning.settle import Job
    from luthier.training.session import check_precision, total_steps

    train = config.train
    rows, length = data.rows, tokens.max_length
    known = data.stream is None
    return Job(
        config.model, config.method, train, data.task, tokens.source,
        rows.lengths if known else [length] * train.batch_size,
        rows.learned if known else [length // 2] * train.batch_size,
        total_steps(train, len(rows)), check_precision(config.model, train), tokens.labels, config.seed,
    )  # fmt: skip


def settle_run(config: RunConfig, data: Prepared, tokens: Tokens, folder: RunFolder, progress: Progress) -> Settled:
    """Decide what the recipe leaves open, or take what was decided when the run was started, and say so."""
    from luthier.planning.settle import Settled, settle

    if folder.plan.is_file():
        return Settled.again(config.train, json.loads(folder.plan.read_text(encoding="utf-8")))
    progress.stage("planning memory and time")
    job = job_of(config, data, tokens)
    settled = settle(job)
    write_json(folder.plan, settled.record())
    if settled.plan is None:
        progress.note(f"memory cannot be foretold for this model ({settled.why})")
    else:
        progress.note(f"planned: {settled.said()}")
        if not settled.plan.fits:
            progress.warn("that is more than there is; luthier plan says what would make it fit")
    return settled


def prove(settled: Settled, config: RunConfig, model: nn.Module, vocabulary: int, progress: Progress) -> Settled:
    """Rows stay apart in one sequence, or they are padded. InputError where the recipe insists on packing."""
    from dataclasses import replace

    from luthier.errors import InputError
    from luthier.training.packing import prove_packing

    if settled.pack is None:
        return settled
    try:
        prove_packing(model, vocabulary)
    except InputError as error:
        if config.train.packing is True:
            raise
        progress.note(f"rows are padded, not packed: {error.message}")
        padded = {"packing": False, "micro_tokens": config.train.micro_tokens}
        return replace(settled, pack=None, train=settled.train.model_copy(update=padded))
    return settled
