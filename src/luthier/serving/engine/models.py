"""Served models: adapters share one base, and each model is verified before it is offered.

The kind of adapter decides how its rows are computed (docs/architecture.md, "Many models, one base"). A prompt is run
through the scheduler next to another row, in chunks. If its logits do not match those of the plain model, the next way
is tried.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError
from luthier.core.events import Progress
from luthier.models.load import load_model, load_tokenizer, locate
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Message
from luthier.serving.engine.multi_adapter import MultiAdapter, deltas_of
from luthier.serving.engine.scheduler import BatchScheduler, PrefixState, RunningRow, Scheduler
from luthier.serving.engine.sources import ModelSource

SHARED, SEPARATE, SEQUENTIAL = "in one batch with the others", "in batches of its own", "one row at a time"
BOUND, HALF_BOUND = 1e-3, 0.25
"""Allowed error of the logits (root mean square) as a fraction of their standard deviation over the vocabulary.

In half precision, rounding grows from layer to layer. A wrong mask or position gives about 1.
"""
PROMPT = "Is it 7 or 8? It is seven of nine; the answer: 你好, été and 3.14159 again. " * 3


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that requests can name."""

    name: str
    kind: str
    template: Template
    scheduler: Scheduler
    prefix: PrefixState
    limit: int  # Tokens of prompt and answer together
    how: str  # SHARED, SEPARATE or SEQUENTIAL


Way = tuple[Callable[[], Scheduler], PrefixState, str]
"""How a model may be served: the scheduler, the prefix state of its rows there, and `ServedModel.how`."""


def open_models(sources: Sequence[ModelSource], progress: Progress, *, dtype: str = "auto") -> list[ServedModel]:
    """Load all models; adapters share one base, which is offered as "base". InputError if one has another base."""
    served = []
    with torch.inference_mode():
        if adapters := [source for source in sources if source.load is not None]:
            served += _over_one_base(adapters, progress, dtype)
        for source in (each for each in sources if each.load is None):
            progress.stage(f"loading the model {source.path}")
            model = _load(source, dtype)
            served.append(_serve(source, model, _own_ways(model, PrefixState())))
    return served


def _over_one_base(sources: Sequence[ModelSource], progress: Progress, dtype: str) -> list[ServedModel]:
    first = replace(sources[0], name="base", kind="base")
    progress.stage(f"loading the base {first.base.path}")
    place = locate(first.base)
    for source in sources:
        source.check(place)
    base = _load(first, dtype)
    untouched = _share(base)  # before a scheduler changes its attention
    adapters = MultiAdapter(base)
    together: Way = partial(BatchScheduler, base, adapters), PrefixState(), SHARED
    shared = _serve(first, base, [together, _own_ways(base, PrefixState())[-1]])
    served = [shared]
    for source in sources:
        progress.stage(f"loading {source.path} ({source.kind})")
        assert source.load is not None
        model: Any = source.load(_share(untouched))
        prefix = _prefix_state(model)
        if prefix is None and shared.how == SHARED and (deltas := deltas_of(model)) is not None:
            prefix = PrefixState(adapter=adapters.add(deltas))
        # In a scheduler of its own, trained keys and deltas are in the model itself.
        ways = _own_ways(model.get_base_model(), PrefixState(embeds=prefix.embeds if prefix is not None else None))
        if prefix is not None and (shared.how == SHARED or prefix.embeds is not None):
            ways.insert(0, (lambda: shared.scheduler, prefix, shared.how))
        served.append(_serve(source, model, ways))
    return served


def _own_ways(model: nn.Module, prefix: PrefixState) -> list[Way]:
    alone = partial(Scheduler, model, getattr(model.config, "_attn_implementation", "sdpa"))
    return [(partial(BatchScheduler, model), prefix, SEPARATE), (alone, prefix, SEQUENTIAL)]


def _serve(source: ModelSource, model: Any, ways: Sequence[Way]) -> ServedModel:
    """Serve a loaded model in the first way that gives its own logits; ModelError if none does."""
    # The template is stored with the weights, also if Luthier chose it, so training and inference cannot differ.
    template = Template(load_tokenizer(source.base, str(source.tokenizer)))
    template.prompt_ids([Message("user", "hi")])  # a broken template fails now, not in an answer
    assert template.end_ids
    ids = template.encode_text(PROMPT)[:40]
    inputs = torch.tensor([ids], device=next(model.parameters()).device)
    # Of the last tokens, before a scheduler changes the model's attention.
    logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[0, -4:].float()
    for make, prefix, how in ways:
        scheduler = make()
        if _matches(scheduler, prefix, ids, logits):
            text: Any = scheduler.model.config.get_text_config()
            limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 2048
            limit = int(limit) - prefix.virtual_tokens
            return ServedModel(source.name, source.kind, template, scheduler, prefix, limit, how)
    message = f"{source.path}: this model answers differently with a cache and without one, so it cannot be served"
    raise ModelError(message, fix="please report it with the model's name")


def _matches(scheduler: Scheduler, prefix: PrefixState, ids: list[int], logits: Tensor) -> bool:
    """Compare `logits` [4, vocabulary] of the last tokens with those read in chunks and then decoded one by one."""
    own, other = RunningRow(ids[:-3], prefix), RunningRow(ids[: len(ids) // 2], PrefixState())
    found = []
    scheduler.chunk = max(4, len(ids) // 3)
    try:
        scheduler.admit(other)
        for _ in range(8):
            scheduler.prefill()
        scheduler.admit(own)
        while own not in scheduler.ready:
            found += [first for row, first in scheduler.prefill() if row is own]
        for token in ids[-3:]:
            own.token, other.token = token, ids[0]
            found.append(scheduler.decode()[scheduler.ready.index(own)])
    except (NotImplementedError, TypeError, AttributeError, RuntimeError, ValueError, IndexError):
        return False  # this model has no such argument, mask or cache
    finally:
        scheduler.chunk = type(scheduler).chunk
        for row in list(scheduler.rows):
            scheduler.evict(row)
    half = any(parameter.dtype != torch.float32 for parameter in scheduler.model.parameters())
    error = (torch.stack(found).float() - logits).square().mean().sqrt()
    return bool(error <= (HALF_BOUND if half else BOUND) * logits.std(-1).mean())


def _prefix_state(model: Any) -> PrefixState | None:
    """Return the prefix state of a loaded adapter; None if the adapter does more than that."""
    from peft.peft_model import PeftModel

    from luthier.methods.layers.prefix import PrefixKVConfig, PrefixLayer

    settings = model.active_peft_config
    if settings.peft_type in ("PROMPT_TUNING", "P_TUNING") and isinstance(model, PeftModel):
        return PrefixState(embeds=model.get_prompt(batch_size=1)[0])
    if type(settings) is not PrefixKVConfig or getattr(model.config, "sliding_window", None):
        return None
    layers = [module for module in model.modules() if isinstance(module, PrefixLayer)]
    both = [layer.halves(layer.flat("default")) for layer in layers]
    if settings.gate != "none" or settings.shifted or len(both) != model.config.num_hidden_layers:
        return None
    dtype = model.get_input_embeddings().weight.dtype
    return PrefixState(keys=[each[0].to(dtype) for each in both], values=[each[1].to(dtype) for each in both])


def _share(base: nn.Module) -> nn.Module:
    """Copy the modules, and the biases, which PEFT overwrites; share all other weights and their quantized state."""
    known: dict[int, object] = {id(buffer): buffer for buffer in base.buffers()}
    known |= {id(tensor): tensor for name, tensor in base.named_parameters() if not name.endswith("bias")}
    for module in base.modules():
        if (state := getattr(module, "state", None)) is not None and not isinstance(state, dict):
            known[id(state)] = state
    return copy.deepcopy(base, known)


def _load(source: ModelSource, dtype: str) -> nn.Module:
    config = source.base if dtype == "auto" else source.base.model_copy(update={"dtype": dtype})
    tokenizer = load_tokenizer(config, str(source.tokenizer))
    return load_model(config, locate(config), labels=None, tokenizer=tokenizer).eval()
