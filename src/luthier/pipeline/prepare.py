"""What every way into a run begins with: data, tokens, what is still open decided, and the base model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import InputError
from luthier.core.events import Progress
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from luthier.data.prepared import Prepared
    from luthier.planning.plan import PlanInputs
    from luthier.planning.resolve import ResolvedSettings
    from luthier.rendering.chat_template import Template
    from luthier.training.settings import RunSettings


@dataclass(frozen=True, slots=True)
class Encoding:
    """The data, and what the base's tokenizer and config.json make of it; no weights are there yet."""

    data: "Prepared"
    template: "Template"
    source: str
    """Folder or hub id of the base."""
    labels: tuple[str, ...] | None
    """Classes of a classification head, or None for a model that generates."""
    max_length: int
    """Longest row in tokens."""


@dataclass(slots=True)
class Loaded:
    """Base model, template and data of a run, ready to train or to measure."""

    config: RunConfig
    model: "nn.Module"
    tokens: Encoding

    @property
    def data(self) -> "Prepared":
        """Rows and examples of all sides."""
        return self.tokens.data

    @property
    def template(self) -> "Template":
        """Tokenizer and chat template."""
        return self.tokens.template


@dataclass(slots=True)
class SharedInputs:
    """What several runs of one comparison share, so that none of them computes it again."""

    tokens: Encoding
    """The data, tokenized."""
    base: "Callable[[RunConfig], nn.Module]"
    """A model of one's own to train, which may lie in the memory of a base that others use."""
    own: "Callable[[nn.Module], None]"
    """What is to be trained of it gets memory of its own."""
    before: Path | None
    """The base's before.json, where it has been measured."""
    finished: "Callable[[Loaded, RunFolder], None]"
    """Called with the tuned model, when it is measured and saved."""

    def load(self, config: RunConfig, folder: RunFolder) -> Loaded:
        """As `load_base`; what the base scored is put into the run's folder."""
        folder.refuse_another_base(config.model, self.tokens.source)
        if self.before is not None and not folder.before.is_file() and folder.before != self.before:
            folder.write_json(folder.before, RunFolder(self.before.parent).read_json(self.before))
        return Loaded(config, self.base(config), self.tokens)


def on_this_machine(config: RunConfig) -> RunConfig:
    """The recipe with device and precision decided. Refuses what this machine cannot serve, before anything is read."""
    from luthier.evaluation.scores import check_settings
    from luthier.models.load import check_quantize, device
    from luthier.training.optimizers.base import OPTIMIZERS

    where = device(config.model)
    precision = config.train.precision_on(where)
    check_quantize(config.model)
    OPTIMIZERS.parse(config.train.optimizer).check(config.train.optimizer)
    check_settings(config.evaluate)
    for tracker in config.train.track:
        tracker.check()
    if config.train.compile:
        from luthier.kernels.apply import check_compile

        check_compile(where)
    model = config.model.model_copy(update={"device": where})
    return config.model_copy(update={"model": model, "train": config.train.model_copy(update={"precision": precision})})


def prepare_data(config: RunConfig, progress: Progress) -> "Prepared":
    """Read all rows. Comes before the model: a mistake in the data should not cost a download."""
    progress.stage("reading data")
    from luthier.data.prepare import load

    return load(config.data, config.task, progress)


def with_decisions(config: RunConfig, data: "Prepared") -> RunConfig:
    """The recipe with what was guessed of the data's columns, or chosen by the user, written down."""
    from luthier.data.prepare import decided
    from luthier.tasks.base import TASKS

    task = TASKS.parse(data.decided["task"]) if "task" in data.decided else config.task
    return config.model_copy(update={"data": decided(config.data, data.decided), "task": task})


def head_labels(data: "Prepared") -> tuple[str, ...] | None:
    """Classes of the head that the task needs, or None for a model that generates."""
    return tuple(getattr(data.task, "labels", ())) if data.task.model_class == "classification" else None


def tokenize(
    config: RunConfig,
    data: "Prepared",
    progress: Progress,
    folder: RunFolder | None = None,
    positions: int | None = None,
    *,
    encoded: bool = False,
) -> Encoding:
    """Encode the rows in place, unless they are `encoded`. Comes before any weights: it can stop the run.

    InputError where the base is not the one that the run in `folder` was started from. `positions` of the model are
    left to the method: its own, unless more are asked for.
    """
    from luthier.data.checks.mask import refuse_endless, seen
    from luthier.data.encode import encode
    from luthier.models.load import load_tokenizer, locate, row_limit
    from luthier.rendering.chat_template import Template

    progress.stage(f"loading the base {config.model.path}")
    source = locate(config.model, progress)
    if folder is not None and Path(source).is_dir():  # a hub's copy may be an older one until the model is loaded
        folder.refuse_another_base(config.model, source)
    template = Template(load_tokenizer(config.model, source))
    labels = head_labels(data)
    taken = config.method.positions if positions is None else positions
    max_length = row_limit(config.model, source, template.tokenizer, config.train.max_length, taken)
    if not encoded:
        encode(data, template, config.data, max_length, progress=progress)
        refuse_endless(data, template)
        if data.decided and data.rows:
            progress.note(f"row 1 as the model sees it, learned between \u00ab and \u00bb: {seen(data, template)}")
    return Encoding(data, template, source, labels, max_length)


def reopen(config: RunConfig, folder: RunFolder, progress: Progress) -> Encoding:
    """The held-out rows of a finished run as the run kept them, and its tokenizer; its data files are not read.

    A run that kept none (it is older than that) has its data read again. InputError where the rows are others now.
    """
    from luthier.data.prepared import Prepared

    kept = folder.checked(folder.held_out).is_file()
    data = Prepared.from_held_out(folder.held_out) if kept else prepare_data(config, progress)
    if not kept:
        refuse_other_rows(config, data, folder)
    return tokenize(config, data, progress, folder, encoded=kept)


def refuse_other_rows(config: RunConfig, data: "Prepared", folder: RunFolder) -> None:
    """InputError where the rows are not those that the run in `folder` was started with."""
    if folder.checked(folder.data).is_file() and folder.read_json(folder.data)["fingerprint"] != data.fingerprint:
        raise InputError(
            f"{config.data.path}: the rows have changed since {folder.path} was started", fix="run=ANOTHER_DIR"
        )


def load_base(
    config: RunConfig, tokens: Encoding, folder: RunFolder | None = None, weights: Path | None = None, place: str = ""
) -> Loaded:
    """The base model. `weights` is the folder of a whole tuned model to load instead; `place` another device for it."""
    import torch

    from luthier.models.load import load_model

    torch.manual_seed(config.seed)  # a classification head starts random
    source, tokenizer = str(weights or tokens.source), tokens.template.tokenizer
    model = load_model(config.model, source, labels=tokens.labels, tokenizer=tokenizer, place=place)
    if folder is not None and not Path(tokens.source).is_dir():
        folder.refuse_another_base(config.model, tokens.source)
    return Loaded(config, model, tokens)


def plan_inputs(config: RunConfig, tokens: Encoding) -> "PlanInputs":
    """What is to be planned; device and precision are decided in the recipe.

    The base with its method on it is built here, of shapes alone. InputError where the method cannot do what the recipe
    asks of this base.
    """
    from luthier.planning.plan import PlanInputs, tuned_skeleton
    from luthier.training.settings import total_steps

    train, rows, length = config.train, tokens.data.rows, tokens.max_length
    known, steps = tokens.data.stream is None, total_steps(config.train, len(tokens.data.rows))
    return PlanInputs(
        config.model,
        config.method,
        train,
        tokens.data.task,
        tuned_skeleton(config.model, config.method, tokens.source, tokens.labels, steps),
        tokens.source,
        rows.lengths if known else [length] * train.batch_size,
        rows.learned if known else [length // 2] * train.batch_size,
        steps,
        tokens.labels,
        config.seed,
    )


def resolve_run(config: RunConfig, tokens: Encoding, folder: RunFolder, progress: Progress) -> "ResolvedSettings":
    """Decide what the recipe leaves open, or take what was decided when the run was started, and say so."""
    from luthier.planning.resolve import ResolvedSettings, resolve
    from luthier.training.settings import total_steps

    if folder.checked(folder.plan).is_file():
        steps = total_steps(config.train, len(tokens.data.rows))
        kept = folder.read_json(folder.plan)  # the plan itself is only needed at the start
        train = config.train.model_copy(update=kept["train"])
        return ResolvedSettings(train, kept["pack"], steps, config.seed, None)
    progress.stage("planning memory and time")
    resolved = resolve(plan_inputs(config, tokens))
    folder.write_json(folder.plan, resolved.record())
    if resolved.plan is None:
        progress.note(f"memory cannot be estimated for this model ({resolved.why})")
    else:
        progress.note(f"planned for this run: {resolved.summary()}")
        if not resolved.plan.fits:
            progress.warn("that is more than there is; luthier plan says what would make it fit")
    return resolved


def run_settings(resolved: "ResolvedSettings", loaded: Loaded, base: "nn.Module", progress: Progress) -> "RunSettings":
    """All that was left open, decided: learning rates by the `base`, packing by a trial on the model to be trained.

    InputError where the recipe insists on packing and rows of one sequence would see one another.
    """
    from luthier.training.packing import prove_packing

    config, train, pack = loaded.config, resolved.train, resolved.pack
    if pack is not None:
        try:
            prove_packing(loaded.model, len(loaded.template.tokenizer))
        except InputError as error:
            if config.train.packing is True:
                raise
            progress.note(f"rows are padded, not packed: {error.message}")
            train = train.model_copy(update={"packing": False, "micro_tokens": config.train.micro_tokens})
            pack = None
    rates = {"lr": config.train.lr or config.method.learning_rate(base), "head_lr": config.train.head_lr}
    if rates["head_lr"] is None and loaded.tokens.labels is not None:
        rates["head_lr"] = _head_lr(loaded)
    lr, head_lr = rates["lr"], rates["head_lr"]
    progress.note(f"learning rate: {lr:g}, of the head {head_lr:g}" if head_lr else f"learning rate: {lr:g}")
    return replace(resolved, train=train.model_copy(update=rates), pack=pack)


def _head_lr(loaded: Loaded) -> float | None:
    """The learning rate of a classifier's head where the recipe gives none; None: that of everything else."""
    from luthier.training.head_rate import new_head_lr
    from luthier.training.optimizers.base import OPTIMIZERS

    config = loaded.config
    trained_before = getattr(config.method, "from_adapter", "")
    if trained_before or not OPTIMIZERS.parse(config.train.optimizer).moves_by_rate:
        return None
    return new_head_lr(loaded.model, len(loaded.template.tokenizer))
