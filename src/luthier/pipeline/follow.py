"""What a rank that does not lead does in a run: it holds the same model, and computes what the leader sends it."""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError
from luthier.core.events import Progress
from luthier.core.ranks import Ranks
from luthier.core.signals import StopRequest
from luthier.core.version import __version__
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from luthier.runs.provenance import base_hashes, environment, local_copy
from luthier.training.optimizers.base import OPTIMIZERS

if TYPE_CHECKING:
    from torch import nn

    from luthier.evaluation.records.context import EvalContext
    from luthier.pipeline.prepare import Loaded
    from luthier.planning.resolve import ResolvedSettings
    from luthier.tasks.base import Task
    from luthier.training.settings import RunSettings, TrainConfig

SHARDED = "fsdp", "hsdp"
"""Values of train.parallel that divide weights among the ranks."""
HELD = "weights", "trained weights", "gradients", "optimizer"
"""Parts of a plan that are divided."""
SHARED_WITHIN = 5.0
"""Seconds after which a file that the leader wrote must be seen on every host."""


def must_agree(config: RunConfig) -> dict[str, str]:
    """What has to be equal on every rank of a run."""
    packages = environment()["packages"]
    names = ("torch", "transformers", "peft", "tokenizers")
    recipe = hashlib.sha256(config.dump().encode()).hexdigest()[:12]
    return {"luthier": __version__, **{name: packages[name] for name in names}, "recipe": recipe}


def refuse_own_disks(folder: Path, ranks: Ranks) -> None:
    """InputError where another host does not see the disk that the run's folder is on. Call it as leader."""
    if not ranks.several:
        return
    parent = folder.absolute().parent
    there = next(each for each in (parent, *parent.parents) if each.is_dir())
    parent.mkdir(parents=True, exist_ok=True)
    token = parent / f".{folder.name}.{secrets.token_hex(4)}.shared"
    token.touch()
    try:
        ranks.order("sees", token)
        for rank, seen in enumerate(ranks.results(lambda: True)):
            if not seen:
                why = f"run: {ranks.name(rank)} does not see the folder {parent} of {ranks.name(0)}"
                raise InputError(why, fix="run=DIR on a disk that all hosts share")
    finally:
        token.unlink()
        with suppress(OSError):  # not empty: others work there
            for each in (parent, *parent.parents):
                if each == there:
                    break
                each.rmdir()


def unshardable(config: RunConfig, packed: str) -> str:
    """Why this run, on a base whose weights are `packed`, cannot be divided among the ranks; empty where it can."""
    method, train = config.method, config.train
    said = f"train.parallel={train.parallel if train.parallel in SHARDED else 'fsdp'}"
    if packed != "none":
        # Packed weights in uint8 are corrupted by the gathering of FSDP2: accelerate#3983, bitsandbytes#1945.
        return f"{said} does not shard a quantized base ({packed}): every device holds the whole base"
    if method.starts_from:
        return f"{said} does not serve method {method.name} as it starts here: from gradients of the whole base"
    if train.precision == "fp16":
        return f"{said} does not serve train.precision=fp16, whose scale must see the gradients of all ranks"
    if method.saves == "model" and OPTIMIZERS.parse(train.optimizer).needs:
        return f"{said} does not serve train.optimizer={train.optimizer}, which takes no sharded weights"
    return ""


def uneven(ranks: Ranks) -> str:
    """Why weights cannot be divided within each host; empty where they can."""
    groups = [ranks.hosts[start : start + ranks.on_host] for start in range(0, ranks.world, ranks.on_host)]
    if ranks.on_host in (1, ranks.world):
        return "train.parallel=hsdp divides weights within each of several hosts with several processes"
    if ranks.world % ranks.on_host or any(len(set(group)) > 1 for group in groups):
        return "train.parallel=hsdp needs as many processes on each host, those of a host one after another"
    return ""


def _divided_in(plan: dict[str, Any], shards: int) -> float:
    """Bytes of a rank where what the plan holds for weights and their states is divided so often."""
    parts = plan["parts"]
    return float(sum(size / shards if name in HELD else size for name, size in parts.items()))


def refuse_sharding(why: str) -> None:
    """InputError where there is a reason."""
    if why:
        raise InputError(why, fix="train.parallel=ddp")


def with_parallel(
    resolved: "ResolvedSettings", config: RunConfig, source: str, folder: RunFolder, ranks: Ranks, progress: Progress
) -> "ResolvedSettings":
    """The settings with `train.parallel` decided: ddp where the run fits so, else hsdp or fsdp; and why.

    InputError where the recipe asks for fsdp or hsdp and the base at `source` is packed.
    """
    from luthier.models.load import architecture, quantization
    from luthier.planning import machine

    why = unshardable(config, quantization(config.model, architecture(config.model, source).config))
    chosen, plan = config.train.parallel, folder.read_json(folder.plan)["plan"]
    if chosen in SHARDED:
        refuse_sharding(why)
    if chosen == "auto":
        # The memory of a CPU is that of all processes; each GPU has its own.
        needed = plan["bytes"] * (ranks.world if plan["device"] == "cpu" else 1) if plan else 0
        room = machine.this_machine(config.model.device).room
        fits = needed <= room
        chosen = "ddp" if fits or why else "fsdp"
        reason = (
            "the whole model fits beside its step" if fits else why or "the whole model does not fit on each device"
        )
        if chosen == "fsdp" and not uneven(ranks) and _divided_in(plan, ranks.on_host) <= room:
            chosen, reason = "hsdp", "the whole model does not fit on each device, and fits on those of a host"
        progress.note(f"{ranks.world} processes, train.parallel={chosen}: {reason}")
    if chosen in SHARDED:
        compiled = "each layer is gathered to compute, by torch.compile as in one process"
        ours = "each layer is gathered to compute, by Luthier's kernels as in one process"
        progress.note(compiled if config.train.compile else ours)
    return replace(resolved, train=resolved.train.model_copy(update={"parallel": chosen}))


def follow_leader(config: RunConfig, ranks: Ranks, request: StopRequest) -> None:
    """Follow the leader's orders until the run ends. `config` has device and precision decided."""
    led = _Led(config, ranks, request)
    request.noting = True  # the leader says when the run stops, and hears of a signal with the next step
    try:
        ranks.serve(led.handlers)
    finally:
        request.noting = False


class _Led:
    """The model of one rank, as far as it is there, and what the leader can order."""

    def __init__(self, config: RunConfig, ranks: Ranks, request: StopRequest) -> None:
        self.config, self.ranks, self.request = config, ranks, request
        self.handlers: dict[str, Callable[..., None]] = {
            "sees": self.sees,
            "base": self.base,
            "compute": self.compute,
            "divide": self.divide,
            "drop": self.drop,
            "attach": self.attach,
        }
        self.context: EvalContext | None = None
        self.base_model: nn.Module | None = None

    def sees(self, token: Path) -> None:
        """Whether a file of the leader is seen here."""
        until = time.monotonic() + SHARED_WITHIN
        while not token.exists() and time.monotonic() < until:
            time.sleep(0.1)
        self.ranks.results(token.exists)

    def base(
        self, config: RunConfig, task: "Task", labels: tuple[str, ...] | None, max_length: int, divided: bool
    ) -> None:
        """Load the base, or its shapes alone where its weights will be `divided`; the leader compares its files."""
        self.ranks.results(lambda: self._load(config, task, labels, max_length, divided))

    def _load(
        self, config: RunConfig, task: "Task", labels: tuple[str, ...] | None, max_length: int, divided: bool
    ) -> dict[str, str]:
        import torch

        from luthier.evaluation.records.context import EvalContext
        from luthier.models.load import load_model, load_tokenizer, locate, skeleton
        from luthier.rendering.chat_template import Template

        self.config = config
        source = locate(config.model)
        template: Template = Template(load_tokenizer(config.model, source))
        torch.manual_seed(config.seed)  # as the leader, in pipeline.prepare.load_base
        if divided:
            model = skeleton(config.model, source, labels=labels).eval()
            model.config.pad_token_id = template.tokenizer.pad_token_id  # type: ignore[union-attr]
        else:
            model = load_model(config.model, source, labels=labels, tokenizer=template.tokenizer)
        self.base_model = model
        self.context = EvalContext(model, template, task, (), (), (), max_length, config.evaluate)
        return hashes_of_base(config, source, self.ranks)

    def compute(self) -> None:
        """Evaluate this rank's batches."""
        assert self.context is not None
        context, (work, batches, more) = self.context, self.ranks.scattered()
        self.ranks.results(lambda: context.compute(work, batches, more, lambda count: None))

    def divide(self, train: "TrainConfig", generation: Any) -> None:
        """Take this rank's shards of the base, to evaluate it."""
        from luthier.models.sharding import divided_copy
        from luthier.training.tuned import sharding_of

        assert self.context is not None and self.base_model is not None
        if generation is not None:
            self.base_model.generation_config = generation  # as the base's files have it
        how = sharding_of(train, self.config.model.device)
        assert how is not None
        self.context.model = divided_copy(self.base_model, how)

    def drop(self) -> None:
        """Let go of these shards."""
        assert self.context is not None and self.base_model is not None
        self.context.model = self.base_model

    def attach(self, settings: "RunSettings", longest: int | None, classify: bool) -> None:
        """Put the method on the base, and be ready to train."""
        from luthier.training.checkpoint import seed
        from luthier.training.step import accelerator_on
        from luthier.training.tuned import StepFollower, TunedModel

        config, context = self.config, self.context
        assert context is not None and self.base_model is not None
        seed(config.seed)
        of_base = set(self.base_model.parameters())
        context.model = config.method.attach(self.base_model, steps=settings.steps, classify=classify)
        accelerator = accelerator_on(config.model.device, config.train.precision)
        how = config.method, settings, accelerator, context.pad, longest, of_base
        tuned = TunedModel(context.model, context.task, *how)
        seed(config.seed)
        self.handlers |= StepFollower(tuned, lambda: self.request.asked).handlers()


@contextmanager
def divided_base(loaded: "Loaded", train: "TrainConfig", ranks: Ranks) -> Iterator[None]:
    """Inside, the base of `loaded` is divided among the ranks where training will divide it, to be evaluated so."""
    from luthier.models.sharding import divided_copy
    from luthier.training.tuned import sharding_of

    how = sharding_of(train, loaded.config.model.device)
    if how is None:
        yield
        return
    whole = loaded.model
    ranks.order("divide", train, getattr(whole, "generation_config", None))
    loaded.model = divided_copy(whole, how)
    try:
        yield
    finally:
        loaded.model = whole
    ranks.order("drop")


def hashes_of_base(config: RunConfig, source: str, ranks: Ranks) -> dict[str, str]:
    """Hashes of the base's files on this host; empty on the leader's own host, which has the leader's files."""
    there = local_copy(source, config.model.revision)
    if there is None or (not ranks.leads and ranks.hosts[ranks.rank] == ranks.hosts[0]):
        return {}
    return base_hashes(there, weights=config.model.init == "pretrained")


def base_on_all(config: RunConfig, tokens: Any, ranks: Ranks, divided: bool, load: Callable[[], Any]) -> Any:
    """What `load` returns, while every other rank loads the base too, or its shapes where weights will be `divided`.

    InputError where one has another base.
    """
    if not ranks.several:
        return load()
    ranks.order("base", config, tokens.data.task, tokens.labels, tokens.max_length, divided)
    loaded = load()
    others = len(set(ranks.hosts)) > 1
    own, *theirs = ranks.results(lambda: hashes_of_base(config, tokens.source, ranks) if others else {})
    for rank, found in enumerate(theirs, 1):
        if found and (odd := sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))):
            why = f"model.path: {config.model.path} on {ranks.name(rank)} is another base than on {ranks.name(0)}"
            raise InputError(f"{why}; they differ in {', '.join(odd[:3])}", fix="the same files on every host")
    return loaded
