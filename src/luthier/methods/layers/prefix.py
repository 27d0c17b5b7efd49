"""Prefix tuning and P-Tuning v2: trained keys and values in front of those of every attention.

Li & Liang 2021, arXiv 2101.00190, section 4; Liu et al. 2022, arXiv 2110.07602. Per layer, P_k and P_v of
shape [length, key/value heads * head size] stand before the keys and values of the real tokens; queries
and positions stay as they are. With `reparam="mlp"` they are W_2 tanh(W_1 E) during training.

PEFT's own prefix tuning hands the prefix over as a cache, which gradient checkpointing, packing and resume do not
survive. Here a child of the attention hooks its call instead: what passes as the cache answers `update(k, v)` with the
prefix in front, so the real cache holds real tokens only, and the mask grows on the left. Nothing else has to know.
"""

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.methods.layers.base import Target, Tuner, TunerConfig, TunerLayer, pooled_gate
from luthier.models.module_map import Attention

CHILD, SHARED = "luthier_prefix", "luthier_prefix_encoder"
"""Names of the child of each attention, and of the root's child that holds the shared half of the MLP."""


@dataclass
class PrefixKVConfig(TunerConfig):
    """Length and parametrization of a prefix."""

    length: int = 20  # virtual tokens per layer
    reparam: str = "none"  # none, or mlp while training
    encoder_size: int = 512  # hidden size of the MLP
    init_std: float = 0.02  # standard deviation of the start
    prefix_dropout: float = 0.0  # share of the prefix dropped in training
    gate: str = "none"  # none, mean (over the sequence) or token
    shifted: bool = False  # positions of the text begin behind the prefix, as in PEFT's prefix tuning


class PrefixedCache:
    """Stands in for the cache in one call of an attention; keys and values are [B, heads, length, head size]."""

    def __init__(self, real: Any, keys: Tensor, values: Tensor) -> None:
        self.real, self.keys, self.values = real, keys, values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.real is not None:
            keys, values = self.real.update(keys, values, *args, **kwargs)
        front = self.keys.to(keys.dtype), self.values.to(values.dtype)
        return torch.cat([front[0], keys], dim=2), torch.cat([front[1], values], dim=2)

    def __getattr__(self, name: str) -> Any:
        if vars(self).get("real") is None:
            raise AttributeError(name)
        return getattr(self.real, name)


def grown_mask(mask: Any, length: int, hidden: Tensor, past: int, *, causal: bool, eager: bool) -> Tensor | None:
    """The attention mask with `length` visible columns on its left."""
    queries = hidden.shape[1]
    if mask is None:  # becomes an explicit causal one: without it the kernel would align its triangle with the prefix
        if not causal or queries == 1:
            return None
        row = torch.arange(queries, device=hidden.device)[:, None] + past
        seen = torch.arange(past + queries, device=hidden.device)[None, :] <= row
        grown = torch.cat([seen.new_ones(queries, length), seen], dim=1)[None, None]
        return _additive(grown, hidden.dtype) if eager else grown
    if not isinstance(mask, Tensor):
        raise NotImplementedError("prefix methods cannot extend flex attention's block masks; use sdpa or eager")
    visible = 0 if mask.is_floating_point() and mask.ndim == 4 else 1
    return torch.cat([mask.new_full((*mask.shape[:-1], length), visible), mask], dim=-1)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of booleans (visible or not) as numbers to add to the attention logits."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask.bool(), torch.finfo(dtype).min)


class PrefixLayer(TunerLayer):
    """The prefix of one attention, attached as its child."""

    attached = True
    containers: ClassVar = {"out": nn.ModuleDict, "pgate": nn.ModuleDict, "kv": nn.ParameterDict}

    def _prepare(self, tuner: Tuner, target: Target) -> None:
        self.place: Attention = tuner.module_map.attention[target.key]
        self.causal = tuner.module_map.causal
        # Kept in a list: as an attribute it would be a child, and its weights would be listed once per layer.
        self.root = [tuner.model]
        self.hooks.append(target.module.register_forward_pre_hook(self._before_attention, with_kwargs=True))
        if target.config.shifted and self.place.layer == 0:
            if "position_ids" not in inspect.signature(tuner.model.forward).parameters:
                raise ValueError("this architecture takes no positions, so a text cannot begin behind the prefix")
            self.hooks.append(tuner.model.register_forward_pre_hook(self._shift, with_kwargs=True))

    def fill(self, adapter: str, config: Any) -> None:
        size = sum(heads * width for heads, width in self.sides)
        if config.reparam == "mlp":
            self.held("out")[adapter] = nn.Linear(config.encoder_size, size)
        else:
            self.held("kv")[adapter] = nn.Parameter(torch.randn(config.length, size) * config.init_std)
        if config.gate != "none":
            self.hold_gate("pgate", adapter, self.model_config.hidden_size)

    @property
    def sides(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Heads and head size of keys, and of values."""
        return self.place.keys, self.place.values

    def flat(self, name: str) -> Tensor:
        """Keys and values of the prefix beside one another, [length, heads * head size of both]."""
        if name in self.held("kv"):
            return self.held("kv")[name]  # type: ignore[no-any-return]
        out = self.held("out")[name]
        return out(getattr(self.root[0], SHARED)(name).to(out.weight.dtype))  # type: ignore[no-any-return]

    def halves(self, flat: Tensor) -> list[Tensor]:
        """Keys and values of `flat`, [heads, length, head size] each."""
        parts = torch.split(flat, [heads * width for heads, width in self.sides], dim=1)
        each = zip(parts, self.sides, strict=True)
        return [part.view(-1, heads, width).transpose(0, 1) for part, (heads, width) in each]

    def forward(self, name: str, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, [B, heads, length, head size] each. A forward, so that sharded weights are gathered."""
        config = self.settings[name]
        flat = nn.functional.dropout(self.flat(name), config.prefix_dropout, self.training)
        keys, values = (half.expand(hidden.shape[0], -1, -1, -1) for half in self.halves(flat))
        if config.gate == "mean":  # UniPELT's own form
            gate = pooled_gate(self.held("pgate")[name], hidden, "mean")[..., None]  # [B, 1, 1, 1]
            keys, values = keys * gate, values * gate
        return keys, values

    def _shift(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let positions of the text begin behind the prefix: learned positions, and the angles of queries to P_k."""
        length = sum(self.settings[name].length for name in self.live() if self.settings[name].shifted)
        if not length:
            return None
        positions = kwargs.get("position_ids")
        if positions is None:
            given = [*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
            entered, cache = next(each for each in given if each is not None), kwargs.get("past_key_values")
            past = cache.get_seq_length() if cache is not None else 0
            positions = torch.arange(past, past + entered.shape[1], device=entered.device)[None]
            if kwargs.get("attention_mask") is None:  # else transformers looks for packed rows in the positions
                kwargs["attention_mask"] = positions.new_ones(entered.shape[0], past + entered.shape[1])
        return args, {**kwargs, "position_ids": positions + length}

    def _before_attention(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = self.live()
        if not names:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        cache, mask = kwargs.get(self.place.cache), kwargs.get("attention_mask")
        past = cache.get_seq_length(self.place.layer) if cache is not None else 0
        for name in names:
            keys, values = self(name, hidden)
            length = keys.shape[2]
            cache = PrefixedCache(cache, keys, values)
            eager = self.model_config._attn_implementation == "eager"
            mask = grown_mask(mask, length, hidden, past, causal=self.causal, eager=eager)
            if self.settings[name].gate == "token":
                mask = self._gated_mask(name, mask, hidden, past, length)
            past += 0 if mask is not None else length
        return args, {**kwargs, self.place.cache: cache, "attention_mask": mask}

    def _gated_mask(self, name: str, mask: Tensor | None, hidden: Tensor, past: int, length: int) -> Tensor:
        """UniPELT's gate of each token on the attention logits of the prefix columns: log sigmoid(w x_t + b)."""
        batch, queries = hidden.shape[:2]
        if mask is None:
            mask = hidden.new_zeros(batch, 1, queries, length + past + queries)
        elif not mask.is_floating_point():
            mask = _additive(mask, hidden.dtype)
        gate = self.held("pgate")[name]
        log_gate = nn.functional.logsigmoid(gate(hidden.to(gate.weight.dtype))).to(mask.dtype)  # [B, T, 1]
        mask = mask.expand(batch, -1, queries, -1)
        return torch.cat([mask[..., :length] + log_gate[:, None], mask[..., length:]], dim=-1)


class PrefixEncoder(TunerLayer):
    """The half of the MLP that all layers share, tanh(W_1 E): [length, encoder size]. A child of the model's root."""

    attached = True
    containers: ClassVar = {"emb": nn.ModuleDict, "in": nn.ModuleDict}

    def fill(self, adapter: str, config: Any) -> None:
        hidden = self.model_config.hidden_size
        self.held("emb")[adapter] = nn.Embedding(config.length, hidden)
        self.held("in")[adapter] = nn.Linear(hidden, config.encoder_size)

    def forward(self, name: str) -> Tensor:
        return torch.tanh(self.held("in")[name](self.held("emb")[name].weight))


def attach_prefix(tuner: Tuner, target: Target) -> None:
    """Add the adapter's prefix to the attention `target`."""
    if why := tuner.module_map.no_prefix:
        raise ValueError(f"no prefix can stand in this architecture: {why}")
    model, adapter, config = tuner.model, target.adapter, target.config
    if config.reparam == "mlp":  # not before the first injection, where PEFT would believe in a second adapter
        if not hasattr(model, SHARED):
            model.add_module(SHARED, PrefixEncoder(tuner, target._replace(module=model)))
        elif adapter not in getattr(model, SHARED).held("emb"):
            getattr(model, SHARED).update_layer(adapter, config)
    if hasattr(target.module, CHILD):
        getattr(target.module, CHILD).update_layer(adapter, config)
    else:
        target.module.add_module(CHILD, PrefixLayer(tuner, target))


def flat_state(model: Any) -> dict[str, Tensor]:
    """The weights of a PEFT model, but of each prefix its plain keys and values, as it is saved, and not its MLP."""
    mlp = [f".{model.base_model.prefix}{short}.default." for short in ("out", "emb", "in")]
    state = {name: value for name, value in model.state_dict().items() if not any(part in name for part in mlp)}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PrefixLayer)}
    return state | {f"{n}.{each.namespace}kv.default": each.flat("default").detach() for n, each in layers.items()}


@torch.no_grad()
def from_peft(model: nn.Module, theirs: Any, stored: Mapping[str, Tensor] | None, shapes: Mapping[str, Any]) -> Any:
    """A PeftModel of `model` with the prefix that PEFT's own prefix tuning trained; without weights if none are stored.

    Its prompt_embeddings are [length, layers * 2 * heads * head size], keys before values in each layer. PEFT hands
    them over as a cache that is full already, so the text's positions begin behind them. Raises ValueError if the
    shape is another.
    """
    from peft import get_peft_model

    length, mode = theirs.num_virtual_tokens, theirs.inference_mode
    own = PrefixKVConfig(length=length, shifted=True, task_type=theirs.task_type, inference_mode=mode)
    with nullcontext() if stored is not None else torch.device("meta"):
        tuned: Any = get_peft_model(model, own)  # type: ignore[arg-type, unused-ignore]
    layers = [module for module in tuned.modules() if isinstance(module, PrefixLayer)]
    sizes = [sum(heads * width for heads, width in layer.sides) for layer in layers]
    if dict(shapes) != (wanted := {"prompt_embeddings": (length, sum(sizes))}):
        raise ValueError(f"its weights are {dict(shapes)}, and a prefix of this model is {wanted}")
    if stored is not None:
        for layer, part in zip(layers, torch.split(stored["prompt_embeddings"], sizes, dim=1), strict=True):
            kv = layer.held("kv")["default"]
            kv.copy_(part.to(kv))
    return tuned
