"""Where adapters attach in a model: its attentions, feed-forwards and the linear layers in them, by module name.

The model itself says where they are: one pass without numbers shows which modules each block calls, which linear layers
the cached keys and values come from, and which tensor the residual stream of a feed-forward is. BERT and T5, whose
sub-layers are put together in another way, have a table.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from luthier.core.strict_json import to_json
from luthier.models.targets import NARROW, sides, why_unfit

Names = tuple[str, ...]
LINEAR = (nn.Linear, Conv1D)
CACHES = ("past_key_values", "layer_past")
"""What attentions call the argument that holds the cache."""
BIASES = ("alibi", "position_bias")
"""Arguments with a bias for each pair of tokens, which a prefix has no place in."""
FEED_FORWARD = re.compile(r"mlp|moe|ffn|feed_?forward|expert", re.IGNORECASE)
QUERY = re.compile(r"(^|[._wW])q(uery)?(_|\.|$)")


class Attention(NamedTuple):
    """How an attention caches: heads and width of one head, and the argument that holds the cache."""

    keys: tuple[int, int]
    values: tuple[int, int]
    layer: int = 0
    """Its number in the cache."""
    cache: str = CACHES[0]


class FeedForward(NamedTuple):
    """What a bottleneck beside the module reads: the first input of the modules named here, or the module's own."""

    residual: str = ""
    """The norm that the residual stream enters the feed-forward through (pre-norm models)."""
    input: str = ""
    """The feed-forward's first layer, where the model has no module around all of it."""
    call: Literal["block", "bert_output"] = "block"
    """block(x), or BertOutput(hidden, input) = norm(dense(hidden) + input)."""


@dataclass(slots=True)
class ModuleMap:
    """Names of the modules that adapters attach to. Empty where the model has none."""

    attention: dict[str, Attention] = field(default_factory=dict)
    attention_out: list[str] = field(default_factory=list)
    """Modules whose output is that of an attention, or what stands in its place, before the residual is added."""
    ffn: dict[str, FeedForward] = field(default_factory=dict)
    """Feed-forward blocks, or their last layers where no module is around them."""
    ffn_out: list[str] = field(default_factory=list)
    """Modules whose output is the feed-forward's, before the residual is added."""
    query: list[str] = field(default_factory=list)
    key: list[str] = field(default_factory=list)
    value: list[str] = field(default_factory=list)
    ffn_last: list[str] = field(default_factory=list)
    """The last linear layers of feed-forwards, whose inputs are the hidden units; none of experts."""
    causal: bool = True
    no_prefix: str = ""
    """Why no keys and values can be put in front of its attention, or empty."""


class _Table(NamedTuple):
    """Regular expressions for whole module names, by the fields of a module map."""

    attention: str
    attention_out: str
    ffn: str
    ffn_out: str
    query: str
    key: str
    value: str
    ffn_last: str
    call: FeedForward
    no_prefix: str = ""


BERT = _Table(
    attention=r".*layer\.\d+\.attention\.self",
    attention_out=r".*layer\.\d+\.attention\.output\.dropout",
    ffn=r".*layer\.\d+\.output",
    ffn_out=r".*layer\.\d+\.output\.dropout",
    query=r".*attention\.self\.query",
    key=r".*attention\.self\.key",
    value=r".*attention\.self\.value",
    ffn_last=r".*layer\.\d+\.output\.dense",
    call=FeedForward(call="bert_output"),
)
T5 = _Table(
    attention=r".*\.SelfAttention",
    attention_out=r".*\.SelfAttention\.o",
    ffn=r".*\.DenseReluDense",
    ffn_out=r".*\.DenseReluDense\.wo",
    query=r".*\.SelfAttention\.q",
    key=r".*\.SelfAttention\.k",
    value=r".*\.SelfAttention\.v",
    ffn_last=r".*\.DenseReluDense\.wo",
    call=FeedForward(residual="layer_norm"),
    no_prefix="its attention has a bias for each pair of tokens",
)
TABLES = {**dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), BERT)}
TABLES |= {**dict.fromkeys(("t5", "mt5"), T5)}

KEPT = 8
_FOUND: dict[tuple[type[Any], str], ModuleMap] = {}
"""Class and settings of a model -> its map, of the last ones that were asked for."""


def module_map_of(model: Any) -> ModuleMap:
    """The module map of a model of transformers, with adapters on it or not. ValueError where it cannot be found."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.to_dict()
    config.pop("quantization_config", None)
    key = (type(base), to_json(config, sort_keys=True, default=str))
    if key not in _FOUND:
        if len(_FOUND) >= KEPT:
            _FOUND.pop(next(iter(_FOUND)))
        _FOUND[key] = _map(type(base), config)
    return _FOUND[key]


def _map(kind: type[Any], settings: dict[str, Any]) -> ModuleMap:
    config = kind.config_class.from_dict(settings)
    with torch.device("meta"):
        model = kind(config).eval()
    table = TABLES.get(config.model_type)
    if table is not None:
        return _from_table(model, table)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"where its layers are is not known for the encoder-decoder {config.model_type}")
    try:
        return _from_pass(model)
    except Exception as error:  # a model's own code may need numbers
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{config.model_type} does not run without numbers, which shows its layers: {reason}"
        ) from error


def try_without_numbers(model: Any) -> None:
    """Run a forward pass of a model on the meta device; whatever it raises there it raises with weights too."""
    training = model.training
    _Pass(model.eval()).run(cached=False)
    model.train(training)


def _from_table(model: Any, table: _Table) -> ModuleMap:
    names = [name for name, _ in model.named_modules()]
    found = {
        key: [n for n in names if re.fullmatch(pattern, n)]
        for key, pattern in table._asdict().items()
        if isinstance(pattern, str)
    }
    own = model.config
    heads = (own.num_attention_heads, getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads)
    calls = {}
    for name in found["ffn"]:
        beside = f"{name.rpartition('.')[0]}.{table.call.residual}" if table.call.residual else ""
        calls[name] = table.call._replace(residual=beside)
    lists = {key: found[key] for key in ("attention_out", "ffn_out", "query", "key", "value", "ffn_last")}
    attention = dict.fromkeys(found["attention"], Attention(heads, heads))
    return ModuleMap(attention=attention, ffn=calls, causal=False, no_prefix=table.no_prefix, **lists)


class _Call:
    """A call of a module: its first input and output, and the calls inside it."""

    def __init__(
        self, name: str, module: nn.Module, number: int, entered: Tensor | None, given: Mapping[str, Any]
    ) -> None:
        self.name, self.module, self.number, self.entered, self.given = name, module, number, entered, given
        self.made: Tensor | None = None
        self.end = number

    @property
    def holds_matrices(self) -> bool:
        """Whether it, or a module in it, has a matrix of weights."""
        return any(parameter.ndim > 1 for parameter in self.module.parameters())

    def keeps_shape(self, width: int) -> bool:
        """Whether it maps hidden states [..., width] to hidden states."""
        both = (self.entered, self.made)
        return all(tensor is not None and tensor.ndim > 1 and tensor.shape[-1] == width for tensor in both)


class _Update(NamedTuple):
    """Keys and values that enter the cache: in which attention, their sizes, and the linear layers they come from."""

    call: _Call
    keys: tuple[int, int]
    values: tuple[int, int]
    layer: int
    key: frozenset[str]
    value: frozenset[str]


class _Pass(TorchDispatchMode):
    """A pass on the meta device: calls, updates of the cache, sums, and the linear layers behind each tensor."""

    def __init__(self, model: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.calls, self.updates, self.stack = model, list[_Call](), list[_Update](), list[_Call]()
        self.sources: dict[int, frozenset[str]] = {}
        self.summed: set[int] = set()
        self.alive: list[Any] = []  # an id is of one tensor while that lives

    def run(self, *, cached: bool) -> None:
        """Call the model on four tokens."""
        if hasattr(self.model, "set_experts_implementation"):  # the plain one loops over the experts that were chosen
            self.model.set_experts_implementation("batched_mm")
        ids = torch.ones(1, 4, dtype=torch.long, device="meta")
        with self._watched(), self, torch.no_grad():
            self.model(input_ids=ids, use_cache=cached)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kind, aten = op.overloadpacket, torch.ops.aten
        if kind is aten._local_scalar_dense:
            return 0.0 if args[0].is_floating_point() else 0
        if kind is aten.nonzero:
            return torch.empty(args[0].numel(), args[0].ndim, dtype=torch.long, device="meta")
        made = op(*args, **(kwargs or {}))
        inputs, outputs = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)] for tree in ((args, kwargs), made)
        )
        source = frozenset[str]().union(*(self.source(tensor) for tensor in inputs))
        self.sources.update({id(tensor): source for tensor in outputs})
        if kind in (aten.add, aten.add_):
            self.summed.update(map(id, inputs))
        self.alive += (inputs, outputs)
        return made

    def source(self, tensor: Tensor | None) -> frozenset[str]:
        """The linear layers that `tensor` was computed from, without those before them."""
        return self.sources.get(id(tensor), frozenset())

    @contextmanager
    def _watched(self) -> Iterator[None]:
        names = {module: name for name, module in self.model.named_modules()}
        cached: Any = Cache
        update = cached.update

        def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            call = _Call(names[module], module, len(self.calls), _first((args, kwargs)), kwargs)
            self.calls.append(call)
            self.stack.append(call)

        def end(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            call = self.stack.pop()
            call.made, call.end = _first(output), len(self.calls)
            self.alive.append((call.entered, call.made))
            if isinstance(module, LINEAR):
                self.sources[id(call.made)] = frozenset([call.name])

        def watch(cache: Any, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
            sides = [(int(each.shape[1]), int(each.shape[-1])) for each in (keys, values)]
            made = _Update(self.stack[-1], sides[0], sides[1], layer, self.source(keys), self.source(values))
            self.updates.append(made)
            return update(cache, keys, values, layer, *args, **kwargs)

        hooks = [module.register_forward_pre_hook(begin, with_kwargs=True) for module in names]
        hooks += [module.register_forward_hook(end, with_kwargs=True) for module in names]
        cached.update = watch
        try:
            yield
        finally:
            cached.update = update
            for hook in hooks:
                hook.remove()


def _first(tree: Any) -> Tensor | None:
    """The first tensor of numbers in arguments or outputs."""
    return next((leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()), None)


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _from_pass(model: Any) -> ModuleMap:
    seen = _Pass(model)
    seen.run(cached=True)
    found, modules = ModuleMap(), dict(model.named_modules())
    lists = {name for name, module in modules.items() if isinstance(module, nn.ModuleList)}
    blocks: dict[str, _Call] = {}
    for call in seen.calls:
        width = call.entered.shape[-1] if call.entered is not None and call.entered.ndim > 2 else 0
        listed = call.name.rpartition(".")[0] in lists and not any(_within(call.name, name) for name in blocks)
        if listed and call.holds_matrices and call.keeps_shape(width):
            blocks[call.name] = call
    for block in blocks.values():
        _add_block(found, seen, block, modules)
    if not found.attention:
        found.no_prefix = "it has no attention that caches keys and values"
    return found


def _add_block(found: ModuleMap, seen: _Pass, block: _Call, modules: dict[str, Any]) -> None:
    """Add the places of one block."""
    width = int(block.entered.shape[-1])  # type: ignore[union-attr]
    inside = seen.calls[block.number + 1 : block.end]
    parts = [c for c in inside if not any(_within(c.name, o.name) and c is not o for o in inside)]
    mixers = []
    for update in (u for u in seen.updates if _within(u.call.name, block.name)):
        mixer = next((part for part in parts if _within(update.call.name, part.name)), block)
        mixers.append(mixer)
        _add_attention(found, update, [c.name for c in seen.calls[mixer.number : mixer.end] if _takes(c.name, modules)])
        _add_output(found.attention_out, seen, mixer, modules)
    if block in mixers:
        return
    whole = [
        p
        for p in parts
        if p not in mixers and not isinstance(p.module, LINEAR) and p.holds_matrices and p.keeps_shape(width)
    ]
    named = [
        p
        for p in whole
        if FEED_FORWARD.search(p.name.removeprefix(block.name)) or FEED_FORWARD.search(type(p.module).__name__)
    ]
    if not mixers and whole and whole != named[:1]:  # a state-space layer, a convolution, linear attention
        other = next((p for p in whole if p not in named), whole[0])
        _add_output(found.attention_out, seen, other, modules)
        whole = [p for p in whole if p is not other]
    layers = [p for p in parts if isinstance(p.module, LINEAR) and p not in mixers]
    if whole:
        feed = max(named or whole[-1:], key=lambda part: sum(p.numel() for p in part.module.parameters()))
        first, last = feed, feed
        _add_output(found.ffn_out, seen, feed, modules)
        outputs = seen.source(feed.made)
        found.ffn_last += [
            c.name for c in inside if c.name in outputs and _within(c.name, feed.name) and _takes(c.name, modules)
        ]
    elif len(layers) > 1:
        first, last = layers[0], layers[-1]
        found.ffn_out.append(last.name)
        found.ffn_last.append(last.name)
    else:
        return
    # In a pre-norm block the feed-forward reads a norm, and what that reads is added to what the feed-forward makes.
    norms = [c for c in inside if c.made is first.entered and not c.holds_matrices and c.number < first.number]
    residual = norms[0].name if norms and id(norms[0].entered) in seen.summed else ""
    found.ffn[last.name] = FeedForward(residual, "" if first is last else first.name)


def _add_attention(found: ModuleMap, update: _Update, names: list[str]) -> None:
    """Add an attention and its query, key and value; `names` are of the linear layers called in it and around it."""
    given = update.call.given
    caches = [name for name in CACHES if given.get(name) is not None]
    if any(given.get(name) is not None for name in BIASES):
        found.no_prefix = "its attention has a bias for each pair of tokens"
    elif not caches or "attention_mask" not in given:
        found.no_prefix = "its attention takes neither a cache nor a mask by name"
    place = update.call.name
    if found.attention.get(place, update).layer != update.layer:
        found.no_prefix = "its blocks run more than once in a pass"
    found.attention.setdefault(place, Attention(update.keys, update.values, update.layer, *caches[:1]))
    keys, values = ([name for name in names if name in side] for side in (update.key, update.value))
    queries = [name for name in names if QUERY.search(name.removeprefix(place)) and name not in keys]
    queries = [name for name in queries if name.count(".") == min(each.count(".") for each in queries)]
    found.key += [name for name in keys if name not in found.key]
    found.value += [name for name in values if name not in found.value]
    found.query += queries[-1:] or keys  # of a query made in two steps the second


def _add_output(outputs: list[str], seen: _Pass, part: _Call, modules: dict[str, Any]) -> None:
    """Add the linear layer that makes the output of `part`, or `part` itself where more than one does."""
    made, calls = seen.source(part.made), seen.calls[part.number : part.end]
    own = [c.name for c in calls if c.name in made and isinstance(c.module, LINEAR)]
    experts = any(
        c.holds_matrices and not list(c.module.children()) and not isinstance(c.module, LINEAR) for c in calls
    )
    name = own[0] if len(own) == 1 and not experts and _takes(own[0], modules) else part.name
    if name not in outputs:
        outputs.append(name)


def _takes(name: str, modules: dict[str, Any]) -> bool:
    """Whether the module is a linear layer that takes an adapter."""
    layer = modules[name]
    return isinstance(layer, LINEAR) and min(sides(layer)) >= NARROW and not why_unfit(name, layer, modules)
