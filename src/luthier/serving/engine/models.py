"""Models that answer, over one base where they are adapters of one: each proved before it is offered.

What an adapter is decides how its rows are computed, the fastest way that gives its own numbers:

- together with the base's and other adapters' rows: what folds into terms of linear layers (`mixing`), virtual tokens
  and trained keys, which only change what a row begins with;
- in a lane of its own over the base's weights: all else (bottlenecks, gates);
- row by row: models whose attention or cache is of another kind.

Which one serves is not guessed from names: a prompt goes through the lane beside another row, in pieces, and its logits
must be those of the plain model. What fails falls to the next way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.errors import ModelError
from luthier.core.events import Progress
from luthier.models.load import load_model, load_tokenizer, locate
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Message
from luthier.serving.engine.multi_adapter import Mixer, terms_of
from luthier.serving.engine.scheduler import Lane, PlainLane, Row, SlotLane, Start
from luthier.serving.engine.sources import Source, base_of

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCHED, APART, PLAIN = "in one batch with the others", "in batches of its own", "one row at a time"
BOUNDS = {torch.float32: 1e-3}
"""Difference of the logits in the trial (root of the mean square) as a share of their spread over the vocabulary."""
HALF = 0.25
"""The same for half types, whose rounding grows from layer to layer. A wrong mask or position makes about 1."""
ASKED = "Is it 7 or 8? It is seven of nine; the answer: 你好, été and 3.14159 again. " * 3
TRIED = 40
"""Tokens of the trial's prompt."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A model under a name of its own."""

    name: str
    kind: str
    template: Template
    lane: Lane
    start: Start
    limit: int
    """Tokens of prompt and answer together."""
    how: str
    """BATCHED, APART or PLAIN."""


def open_variants(sources: Sequence[Source], progress: Progress, *, dtype: str = "auto") -> list[Variant]:
    """Load all; adapters share one base, which is offered as "base". InputError where one is not for this base."""
    with torch.inference_mode():
        made = []
        adapters = [source for source in sources if source.load is not None]
        for source in sources:
            if source.load is None:
                progress.stage(f"loading {source.path}")
                made.append(_whole(source, dtype))
        if adapters:
            made = [*_over_one_base(adapters, progress, dtype), *made]
        return made


def _whole(source: Source, dtype: str) -> Variant:
    template, model = _template(source), _model(source, dtype)
    reference = _reference(model, template)
    return _served(source, template, [(SlotLane, APART), (PlainLane, PLAIN)], model, Start(), reference)


def _over_one_base(sources: Sequence[Source], progress: Progress, dtype: str) -> list[Variant]:
    first = sources[0]
    progress.stage(f"loading the base {first.base.path}")
    place = locate(first.base)
    for source in sources:
        source.check(place)
    base = _model(first, dtype)
    template = _template(first)
    reference = _reference(base, template)
    untouched = _share(base)  # as it is before slots take its attention over
    mixer = Mixer(base)
    offered = _served(
        base_of(first),
        template,
        [(lambda model: SlotLane(model, mixer), BATCHED), (PlainLane, PLAIN)],
        base,
        Start(),
        reference,
    )
    made = [offered]
    for source in sources:
        progress.stage(f"loading {source.path} ({source.kind})")
        made.append(_adapter(source, untouched, offered, mixer))
    return made


def _adapter(source: Source, base: nn.Module, offered: Variant, mixer: Mixer) -> Variant:
    assert source.load is not None
    template = _template(source)
    model: Any = source.load(_share(base))
    reference = _reference(model, template)
    start = _begins(model)
    if start is None and offered.how == BATCHED and (terms := terms_of(model)) is not None:
        start = Start(adapter=mixer.add(terms))
    shared = start is not None and (offered.how == BATCHED or start.embeds is not None)
    if shared and start is not None and _right(offered.lane, start, template, reference):
        return Variant(source.name, source.kind, template, offered.lane, start, _limit(base, start), offered.how)
    inner = model.get_base_model()
    return _served(source, template, [(SlotLane, APART), (PlainLane, PLAIN)], inner, start_apart(start), reference)


def start_apart(start: Start | None) -> Start:
    """Where a row begins in a lane of its own, whose model has trained keys and linear terms in itself."""
    return Start(embeds=start.embeds) if start is not None else Start()


def _served(
    source: Source,
    template: Template,
    lanes: Sequence[tuple[Any, str]],
    model: nn.Module,
    start: Start,
    reference: tuple[list[int], Tensor],
) -> Variant:
    """In the first lane that gives the model's own numbers; ModelError where none does."""
    usual = getattr(model.config, "_attn_implementation", "sdpa")
    for make, how in lanes:
        lane = make(model)
        if _right(lane, start, template, reference):
            return Variant(source.name, source.kind, template, lane, start, _limit(model, start), how)
        model.set_attn_implementation(usual)  # type: ignore[operator]
    raise ModelError(
        f"{source.path}: this model answers otherwise with a cache than without one, so it cannot be served",
        fix="please report it with the model's name",
    )


def _right(lane: Lane, start: Start, template: Template, reference: tuple[list[int], Tensor]) -> bool:
    """Are the logits of the trial's tokens, read in pieces and then one by one, those of the plain model?"""
    ids, whole = reference
    own, other = Row(ids[:-3], start), Row(ids[: len(ids) // 2], Start())
    found = []
    lane.chunk = max(4, len(ids) // 3)
    try:
        lane.take(other)
        for _ in range(8):
            lane.feed()
        lane.take(own)
        while own not in lane.ready:
            found += [logits for row, logits in lane.feed() if row is own]
        for token in ids[-3:]:
            own.token, other.token = token, ids[0]
            found.append(lane.step()[lane.ready.index(own)])
    except (NotImplementedError, TypeError, AttributeError, RuntimeError, ValueError, IndexError):
        return False  # this model has no such argument, mask or cache: the next way is tried
    finally:
        lane.chunk = type(lane).chunk
        for row in list(lane.rows):
            lane.drop(row)
    gap = (torch.stack(found).float() - whole[-4:]).square().mean().sqrt()
    return bool(gap <= _bound(lane.model) * whole[-4:].std(-1).mean())


def _bound(model: nn.Module) -> float:
    kinds = {parameter.dtype for parameter in model.parameters()}
    return max(BOUNDS.get(kind, HALF) for kind in kinds)


def _reference(model: Any, template: Template) -> tuple[list[int], Tensor]:
    """Tokens of a prompt, and the plain model's logits for each: [tokens, vocabulary]."""
    ids = template.encode_text(ASKED)[:TRIED]
    where = next(model.parameters()).device
    made = model(
        input_ids=torch.tensor([ids], device=where), attention_mask=torch.ones(1, len(ids), device=where).long()
    )
    return ids, made.logits[0, -len(ids) :].float()


def _begins(model: Any) -> Start | None:
    """What rows of a loaded adapter begin with, where that is all it does; None else."""
    from peft.peft_model import PeftModel

    from luthier.methods.layers.prefix import PrefixKVConfig, PrefixLayer

    settings = model.active_peft_config
    if settings.is_prompt_learning:
        if settings.peft_type in ("PROMPT_TUNING", "P_TUNING") and isinstance(model, PeftModel):
            return Start(embeds=model.get_prompt(batch_size=1)[0])
        return None
    if not isinstance(settings, PrefixKVConfig) or getattr(model.config, "sliding_window", None):
        return None
    layers = [module for module in model.modules() if isinstance(module, PrefixLayer)]
    both = [layer.flat("default").view(-1, 2, layer.heads, layer.head_size).permute(1, 2, 0, 3) for layer in layers]
    if settings.gate != "none" or len(both) != model.config.num_hidden_layers:
        return None
    kind = model.get_input_embeddings().weight.dtype
    return Start(keys=[each[0].to(kind) for each in both], values=[each[1].to(kind) for each in both])


def _share(base: nn.Module) -> nn.Module:
    """Modules of its own over the same weights, which nothing trains; packed ones keep their state with them.

    Biases are copied: an adapter may bring some of its own, which PEFT writes over the base's.
    """
    known: dict[int, object] = {id(buffer): buffer for buffer in base.buffers()}
    known |= {id(tensor): tensor for name, tensor in base.named_parameters() if not name.endswith("bias")}
    for module in base.modules():
        if (state := getattr(module, "state", None)) is not None and not isinstance(state, dict):
            known[id(state)] = state
    return copy.deepcopy(base, known)


def _model(source: Source, dtype: str) -> nn.Module:
    config = source.base if dtype == "auto" else source.base.model_copy(update={"dtype": dtype})
    tokenizer = load_tokenizer(config, str(source.tokenizer))
    return load_model(config, locate(config), labels=None, tokenizer=tokenizer).eval()


def _template(source: Source) -> Template:
    # The template lies with the weights, also where Luthier chose it, so training and use cannot differ.
    template = Template(load_tokenizer(source.base, str(source.tokenizer)))
    template.prompt_ids([Message("user", "hi")])  # a template that fails does so now, not in an answer
    assert template.end_ids
    return template


def _limit(model: nn.Module, start: Start) -> int:
    text: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    most = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 2048
    return int(most) - start.virtual
