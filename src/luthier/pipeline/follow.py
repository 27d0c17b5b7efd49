"""What a rank that does not lead does in a run: it holds the same model, and computes what the leader sends it."""

import hashlib
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError
from luthier.core.events import Progress
from luthier.core.ranks import Ranks
from luthier.core.signals import StopRequest
from luthier.core.version import __version__
from luthier.methods.base import Method
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from luthier.runs.provenance import base_hashes, environment, local_copy

if TYPE_CHECKING:
    from torch import nn

    from luthier.evaluation.records.context import EvalContext
    from luthier.planning.resolve import ResolvedSettings
    from luthier.tasks.base import Task
    from luthier.training.settings import RunSettings

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


def unshardable(method: Method, packed: str) -> str:
    """Why this method, or a base whose weights are `packed`, cannot be divided among the ranks; empty where it can."""
    if packed != "none":
        # Packed weights in uint8 are corrupted by the gathering of FSDP2: accelerate#3983, bitsandbytes#1945.
        return f"train.parallel=fsdp does not shard a quantized base ({packed}): every device holds the whole base"
    own = type(method)
    if own.penalty is not Method.penalty or own.after_step is not Method.after_step or method.starts_from:
        return f"train.parallel=fsdp does not serve method {method.name}, which looks at whole weights or gradients"
    return ""


def refuse_sharding(why: str) -> None:
    """InputError where there is a reason."""
    if why:
        raise InputError(why, fix="train.parallel=ddp")


def with_parallel(
    resolved: "ResolvedSettings", config: RunConfig, source: str, folder: RunFolder, world: int, progress: Progress
) -> "ResolvedSettings":
    """The settings with `train.parallel` decided: ddp where the run fits so, else fsdp; and why.

    InputError where the recipe asks for fsdp and the base at `source` is packed.
    """
    from luthier.models.load import architecture, quantization
    from luthier.planning import machine

    why = unshardable(config.method, quantization(config.model, architecture(config.model, source).config))
    if config.train.parallel == "fsdp":
        refuse_sharding(why)
    chosen, plan = config.train.parallel, folder.read_json(folder.plan)["plan"]
    if chosen == "auto":
        # The memory of a CPU is that of all processes; each GPU has its own.
        needed = plan["bytes"] * (world if plan["device"] == "cpu" else 1) if plan else 0
        fits = needed <= machine.this_machine(config.model.device).room
        chosen = "ddp" if fits or why else "fsdp"
        reason = (
            "the whole model fits beside its step" if fits else why or "the whole model does not fit on each device"
        )
        progress.note(f"{world} processes, train.parallel={chosen}: {reason}")
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

    def base(self, config: RunConfig, task: "Task", labels: tuple[str, ...] | None, max_length: int) -> None:
        """Load the base; the leader compares its files with its own."""
        self.ranks.results(lambda: self._load(config, task, labels, max_length))

    def _load(self, config: RunConfig, task: "Task", labels: tuple[str, ...] | None, max_length: int) -> dict[str, str]:
        import torch

        from luthier.evaluation.records.context import EvalContext
        from luthier.models.load import load_model, load_tokenizer, locate
        from luthier.rendering.chat_template import Template

        self.config = config
        source = locate(config.model)
        template: Template = Template(load_tokenizer(config.model, source))
        torch.manual_seed(config.seed)  # as the leader, in pipeline.prepare.load_base
        model = load_model(config.model, source, labels=labels, tokenizer=template.tokenizer)
        self.base_model = model
        self.context = EvalContext(model, template, task, (), (), (), max_length, config.evaluate)
        return hashes_of_base(config, source, self.ranks)

    def compute(self) -> None:
        """Evaluate this rank's batches."""
        assert self.context is not None
        context, (work, batches, more) = self.context, self.ranks.scattered()
        self.ranks.results(lambda: context.compute(work, batches, more, lambda count: None))

    def attach(self, settings: "RunSettings", longest: int | None, classify: bool) -> None:
        """Put the method on the base, and be ready to train."""
        from luthier.training.checkpoint import seed
        from luthier.training.step import accelerator_on
        from luthier.training.tuned import StepFollower, TunedModel

        config, context = self.config, self.context
        assert context is not None and self.base_model is not None
        seed(config.seed)
        context.model = config.method.attach(self.base_model, steps=settings.steps, classify=classify)
        accelerator = accelerator_on(config.model.device, config.train.precision)
        pad_id = context.pad
        tuned = TunedModel(context.model, context.task, config.method, settings, accelerator, pad_id, longest)
        seed(config.seed)
        self.handlers |= StepFollower(tuned, lambda: self.request.asked).handlers()


def hashes_of_base(config: RunConfig, source: str, ranks: Ranks) -> dict[str, str]:
    """Hashes of the base's files on this host; empty on the leader's own host, which has the leader's files."""
    there = local_copy(source, config.model.revision)
    if there is None or (not ranks.leads and ranks.hosts[ranks.rank] == ranks.hosts[0]):
        return {}
    return base_hashes(there, weights=config.model.init == "pretrained")


def base_on_all(config: RunConfig, tokens: Any, ranks: Ranks, load: Callable[[], Any]) -> Any:
    """What `load` returns, while every other rank loads the base too. InputError where one has another base."""
    if not ranks.several:
        return load()
    ranks.order("base", config, tokens.data.task, tokens.labels, tokens.max_length)
    loaded = load()
    others = len(set(ranks.hosts)) > 1
    own, *theirs = ranks.results(lambda: hashes_of_base(config, tokens.source, ranks) if others else {})
    for rank, found in enumerate(theirs, 1):
        if found and (odd := sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))):
            why = f"model.path: {config.model.path} on {ranks.name(rank)} is another base than on {ranks.name(0)}"
            raise InputError(f"{why}; they differ in {', '.join(odd[:3])}", fix="the same files on every host")
    return loaded
