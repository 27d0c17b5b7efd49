"""What every way into a run begins with: data, tokens, what is still open decided, and the base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.config import RunConfig
from luthier.errors import InputError
from luthier.folder import RunFolder
from luthier.training.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from luthier.choosing.evidence import Board
    from luthier.choosing.question import Wish
    from luthier.choosing.reasons import Question
    from luthier.data.prepared import Prepared
    from luthier.data.template import Template
    from luthier.planning.settle import Job, Settled
    from luthier.tasks.base import Task


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
    tokens: Tokens
    data: Prepared

    @property
    def template(self) -> Template:
        """Tokenizer and chat template."""
        return self.tokens.template

    @property
    def max_length(self) -> int:
        """Longest row in tokens."""
        return self.tokens.max_length


@dataclass(slots=True)
class Given:
    """What several runs of one comparison share, so that none of them makes it anew."""

    data: Prepared
    """Read, and tokenized as `tokens` says."""
    tokens: Tokens
    base: Callable[[RunConfig], nn.Module] | None
    """A model of one's own to train, which may lie in the memory of a base that others use; None: it is loaded."""
    own: Callable[[nn.Module], None]
    """What is to be trained of it gets memory of its own."""
    before: Path | None
    """The base's before.json, where it has been measured."""
    finished: Callable[[Loaded, RunFolder], None]
    """Called with the tuned model, when it is measured and saved."""

    def load(self, config: RunConfig, folder: RunFolder) -> Loaded:
        """As `load_base`; what the base scored is put into the run's folder."""
        folder.refuse_another_base(config.model, self.tokens.source)
        if self.before is not None and not folder.before.is_file() and folder.before != self.before:
            folder.write_json(folder.before, RunFolder(self.before.parent).read_json(self.before))
        if self.base is None:
            return load_base(config, self.data, self.tokens, folder=folder)
        return Loaded(config, self.base(config), self.tokens, self.data)


def check_machine(config: RunConfig) -> None:
    """Refuse what this machine cannot serve, before anything is read or downloaded."""
    from luthier.evaluation.score import check_settings
    from luthier.models.load import check_quantize, device
    from luthier.training.precision import check_precision

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


def decided(config: RunConfig, data: Prepared) -> RunConfig:
    """The recipe with what was guessed of the data's columns, or chosen by the user, written down."""
    from luthier.data.prepare import decided
    from luthier.tasks.base import TASKS

    task = TASKS.parse(data.decided["task"]) if "task" in data.decided else config.task
    return config.model_copy(update={"data": decided(config.data, data.decided), "task": task})


def tokenize(
    config: RunConfig, data: Prepared, progress: Progress, folder: RunFolder | None = None, positions: int | None = None
) -> Tokens:
    """Encode the rows in place, and refuse what cannot be trained. Comes before any weights: it can stop the run.

    InputError where the base is not the one that the run in `folder` was started from. `positions` of the model are
    left to the method: its own, unless more are asked for.
    """
    from luthier.data.checks.mask import refuse_endless, seen
    from luthier.data.encode import encode

    tokens = load_tokens(config, data, progress, folder, positions)
    encode(data, tokens.template, config.data, tokens.max_length, progress=progress)
    refuse_endless(data, tokens.template)
    if data.decided and data.rows:
        progress.note(f"row 1 as the model sees it, learned between \u00ab and \u00bb: {seen(data, tokens.template)}")
    check_method(config, tokens.source, tokens.labels)
    return tokens


def load_tokens(
    config: RunConfig, data: Prepared, progress: Progress, folder: RunFolder | None = None, positions: int | None = None
) -> Tokens:
    """What encodes the rows, and how long they may be. InputError as `tokenize` raises for another base."""
    from luthier.data.template import Template
    from luthier.models.load import load_tokenizer, locate, row_limit

    source = locate(config.model)
    progress.stage(f"loading {config.model.path}")
    if folder is not None and Path(source).is_dir():  # a hub's copy may be an older one until the model is loaded
        folder.refuse_another_base(config.model, source)
    template = Template(load_tokenizer(config.model, source))
    labels = tuple(getattr(data.task, "labels", ())) if data.task.model_class == "classification" else None
    taken = config.method.positions if positions is None else positions
    max_length = row_limit(config.model, source, template.tokenizer, config.train.max_length, taken)
    return Tokens(template, source, labels, max_length)


def reopen(config: RunConfig, folder: RunFolder, progress: Progress) -> tuple[Prepared, Tokens]:
    """The held-out rows of a finished run as the run kept them, and its tokenizer; its data files are not read.

    A run that kept none (it is older than that) has its data read again. InputError where the rows are others now.
    """
    from luthier.data import held_out

    if folder.checked(folder.held_out).is_file():
        data = held_out.restored(folder.held_out)
        return data, load_tokens(config, data, progress, folder)
    data = prepare_data(config, progress)
    refuse_other_rows(config, data, folder)
    return data, tokenize(config, data, progress, folder)


def refuse_other_rows(config: RunConfig, data: Prepared, folder: RunFolder) -> None:
    """InputError where the rows are not those that the run in `folder` was started with."""
    if folder.checked(folder.data).is_file() and folder.read_json(folder.data)["fingerprint"] != data.fingerprint:
        raise InputError(
            f"{config.data.path}: the rows have changed since {folder.path} was started", mend="run=ANOTHER_DIR"
        )


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
    return Loaded(config, model, tokens, data)


def check_method(config: RunConfig, source: str, labels: tuple[str, ...] | None) -> None:
    """Refuse a method that cannot do what the recipe asks of this model, on its shape alone, before any weights."""
    from luthier.models.load import quantization, skeleton

    model = skeleton(config.model, source, labels=labels)
    config.method.check(model, classify=labels is not None, quantize=quantization(config.model, model.config))


def job_of(config: RunConfig, data: Prepared, tokens: Tokens) -> Job:
    """What is to be planned."""
    from luthier.planning.settle import Job
    from luthier.training.precision import check_precision
    from luthier.training.session import total_steps

    train = config.train
    rows, length = data.rows, tokens.max_length
    known = data.stream is None
    return Job(
        config.model,
        config.method,
        train,
        data.task,
        tokens.source,
        rows.lengths if known else [length] * train.batch_size,
        rows.learned if known else [length // 2] * train.batch_size,
        total_steps(train, len(rows)),
        check_precision(config.model, train),
        tokens.labels,
        config.seed,
    )


def settle_run(config: RunConfig, data: Prepared, tokens: Tokens, folder: RunFolder, progress: Progress) -> Settled:
    """Decide what the recipe leaves open, or take what was decided when the run was started, and say so."""
    from luthier.planning.settle import Settled, settle

    if folder.checked(folder.plan).is_file():
        return Settled.again(config.train, folder.read_json(folder.plan))
    progress.stage("planning memory and time")
    job = job_of(config, data, tokens)
    settled = settle(job)
    folder.write_json(folder.plan, settled.record())
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


def question_of(config: RunConfig, wish: Wish, evidence: list[Path], progress: Progress) -> tuple[Question, Task]:
    """What `choose` is asked: rows and task, read unless the wish names their number, the base's shape, the machine."""
    from luthier.choosing.candidates import Base
    from luthier.choosing.evidence import relevant
    from luthier.choosing.question import assumed, facts_of
    from luthier.choosing.reasons import Question
    from luthier.methods.base import METHODS
    from luthier.models.load import device, family_of, locate, positions_of, skeleton, stored_bytes
    from luthier.planning import machine
    from luthier.tasks.base import TASKS
    from luthier.training.precision import check_precision

    other = None
    where = config.model.device
    if wish.memory is not None:
        other = machine.Other("cpu" if where == "cpu" else "cuda", wish.memory)
    bare = config.model.model_copy(
        update={"init": "random", "quantize": "none", "device": "cpu" if other is not None else where}
    )
    neutral = config.model_copy(
        update={
            "model": bare,
            "method": METHODS.parse("lora"),
            "data": config.data.model_copy(update={"streaming": False}),
        }
    )
    source = locate(bare)
    family = family_of(bare, source)
    if wish.rows is None:
        data = prepare_data(neutral, progress)
        tokens = tokenize(neutral, data, progress)
        task, labels, limit, facts = data.task, tokens.labels, tokens.max_length, facts_of(data, tokens.labels)
    else:
        task = config.task or TASKS.parse("chat" if family == "decoder" else "classify")
        limit = config.train.max_length or positions_of(bare, source)
        labels = tuple(getattr(task, "labels", ())) or None
        facts = assumed(wish.rows, task.name, labels, config.train.max_length, limit)
        labels = facts.labels
    whole = skeleton(bare, source, labels=labels)  # refuses here what no method could do with this base
    parameters, base_bytes = stored_bytes(whole)
    on_card = other is not None and other.device == "cuda"
    model = config.model.model_copy(update={"device": bare.device})
    layers = getattr(whole.config, "num_hidden_layers", None)
    if on_card and model.dtype == "auto":
        model = model.model_copy(
            update={"dtype": str(getattr(whole.config, "dtype", None) or "float32").split(".")[-1]}
        )
    precision = "bf16" if on_card and config.train.precision == "auto" else check_precision(bare, config.train)
    place = other.device if other is not None else device(bare)
    total, free = (other.memory, other.memory) if other is not None else machine.memory(place)
    boards = _own_boards(config, evidence, task.name, progress)
    reads = machine.reading() if isinstance(wish.latency, float) and other is None and place == "cpu" else None
    base = Base(model, source, labels, precision, limit, layers, other)
    question = Question(
        base,
        facts,
        wish,
        config.model.path,
        family,
        parameters,
        base_bytes,
        total,
        free,
        place,
        [*boards, *relevant(facts.learns, family)],
        reads,
    )
    return question, task


def _own_boards(config: RunConfig, evidence: list[Path], task: str, progress: Progress) -> list[Board]:
    """Comparisons that were named, which must be sound, and those in runs/, of which a broken one is told."""
    from luthier.choosing.evidence import comparisons

    asked = {"model": config.model.path, "data": config.data.path, "task": task}
    found = comparisons(evidence, **asked)
    for file in sorted(Path("runs").glob("*/compare.json")):
        try:
            found += comparisons([file], **asked) if file not in evidence else []
        except InputError as error:
            progress.warn(f"left out: {error.message.removeprefix('--evidence: ')}")
    return found
