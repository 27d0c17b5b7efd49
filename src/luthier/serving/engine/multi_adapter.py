"""Many adapters over one base in one step: each row gets its own.

What an adapter does to a linear layer, folded into a few terms,

    y' = s * (W R (c * x) + B A x) + b

with W of the base: A [rank, in], B [out, rank], s and b [out], c [in], R [in, in] in blocks. LoRA and its kin have A
and B, DoRA also s (its magnitudes over the norms of W + BA, arXiv 2402.09353, section 4.1), (IA)3 s or c, BitFit b,
OFT R. The A of all adapters stand in one matrix and so do the B, so a step costs two products however many adapters its
rows have; what belongs to another row's adapter is zeroed between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class Terms:
    """What one adapter does to one layer; None is nothing."""

    down: Tensor | None = None
    """A, [rank, in]."""
    up: Tensor | None = None
    """B times the adapter's scaling, [out, rank]."""
    scale: Tensor | None = None
    """s, [out]."""
    shift: Tensor | None = None
    """b, [out]."""
    into: Tensor | None = None
    """c, [in]; with it there is no A."""
    turn: Tensor | None = None
    """R less 1, [blocks, size, size], which a block of x multiplies from the left; with it there is no A."""


def terms_of(model: nn.Module, name: str = "default") -> dict[str, Terms] | None:
    """Name of a layer -> what the adapter of a loaded PEFT model does there; None where it does not fold so."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    if getattr(model.active_peft_config, "bias", "none") not in (None, "none"):  # biases of the base, written over
        return None
    base: Any = model.get_base_model()  # type: ignore[operator]
    found: dict[str, Terms] = {}
    for place, module in base.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):  # whole modules trained beside the adapter
            return None
        if not isinstance(module, BaseTunerLayer):
            continue
        made = _terms(module, name)
        if made is None:
            return None
        found[place] = made
    return found


def _terms(layer: Any, name: str) -> Terms | None:  # noqa: PLR0911 (one for each kind)
    from peft.tuners.adalora import SVDLinear
    from peft.tuners.ia3 import IA3Layer
    from peft.tuners.lora import LoraLayer
    from peft.tuners.oft import OFTLayer
    from peft.tuners.vera import VeraLayer

    from luthier.methods.layers.bias import BiasDelta

    if not hasattr(layer.get_base_layer(), "weight") or isinstance(layer.get_base_layer(), nn.Embedding):
        return None
    if layer.merged or name not in layer.active_adapters:
        return None
    if isinstance(layer, SVDLinear):
        down = layer.lora_A[name] * layer.lora_E[name]
        return Terms(down, layer.lora_B[name] * (layer.scaling[name] / (layer.ranknum[name] + 1e-5)))
    if isinstance(layer, LoraLayer):
        return _low_rank(layer, name)
    if isinstance(layer, VeraLayer) and layer.vera_A is not None and layer.vera_B is not None:
        rank, size_in, size_out = len(layer.vera_lambda_d[name]), layer.in_features, layer.out_features
        down = layer.vera_A[name][:rank, :size_in] * layer.vera_lambda_d[name][:, None]
        return Terms(down, layer.vera_B[name][:size_out, :rank] * layer.vera_lambda_b[name][:, None])
    if isinstance(layer, IA3Layer):
        factor = layer.ia3_l[name].flatten()
        return Terms(into=factor) if layer.is_feedforward else Terms(scale=factor)
    if isinstance(layer, BiasDelta):
        return Terms(shift=layer.held("delta")[name])
    if isinstance(layer, OFTLayer) and layer.oft_R[name].weight.ndim == 2:
        return Terms(turn=_turn(layer.oft_R[name]))
    return None


def _turn(rotation: Any) -> Tensor:
    """R less 1 of one of PEFT's rotations, [blocks, size, size]: made once, where PEFT makes it anew at each call."""
    size: int = rotation.block_size
    whole: Tensor = rotation.get_weight()
    blocks = len(whole) // size
    each = torch.arange(blocks)
    return whole.view(blocks, size, blocks, size)[each, :, each] - torch.eye(size, device=whole.device)


def _low_rank(layer: Any, name: str) -> Terms | None:
    if layer.lora_variant and not layer.use_dora.get(name):
        return None
    if layer.lora_bias.get(name) or name not in layer.lora_A or layer.lora_A[name].weight.ndim != 2:
        return None
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight * layer.scaling[name]
    if not layer.use_dora.get(name):
        return Terms(down, up)
    base, magnitude = layer.get_base_layer(), layer.lora_magnitude_vector[name]
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    weight = dequantize_module_weight(base).to(up.dtype)
    weight = weight.T if isinstance(base, Conv1D) else weight
    scale = magnitude.weight / torch.linalg.norm(weight + up @ down, dim=1)
    # DoRA scales the product alone, and the base's bias is in y.
    shift = None if base.bias is None else (1 - scale) * base.bias.to(scale.dtype)
    return Terms(down, up, scale, shift)


class Mixer:
    """Adapters over the linear layers of one model; `use` says which row has which."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers: dict[str, MixedLayer] = {}
        self.number = 0
        self.rows: tuple[int, ...] = ()
        self.masks: dict[tuple[Any, ...], Tensor] = {}

    def add(self, terms: dict[str, Terms]) -> int:
        """Take an adapter over; its number, from 1 on. The base is 0."""
        self.number += 1
        for name, own in terms.items():
            if name not in self.layers:
                self.layers[name] = MixedLayer(self.model.get_submodule(name), self)
            self.layers[name].add(self.number, own)
        return self.number

    def use(self, rows: Sequence[int]) -> None:
        """Rows of the next step have the adapters of these numbers."""
        self.rows = tuple(rows)

    def own(self, columns: tuple[tuple[int, int], ...], like: Tensor) -> Tensor:
        """[rows, 1, columns]: 1 where a column belongs to the row's adapter. `columns`: (adapter, how many), in order.

        Most layers have the same columns, so there is one mask for all of them.
        """
        key = (self.rows, columns, like.dtype)
        if key not in self.masks:
            if len(self.masks) >= KEPT * 4:
                self.masks.clear()
            owner = torch.tensor([number for number, many in columns for _ in range(many)], device=like.device)
            rows = torch.tensor(self.rows, device=like.device)
            self.masks[key] = (owner == rows[:, None])[:, None].to(like.dtype)
        return self.masks[key]


KEPT = 4
"""Sets of rows for which a layer keeps what it does: rows that are ready and rows that are read in take turns."""

FEW = 128
"""Rows times columns of A below which a CPU multiplies sooner in float32 than in half types.

A product in a half type costs 15 microseconds before it begins there; from then on it reads half as much, and many
tokens take an eighth of the time.
"""


@dataclass(slots=True)
class _Now:
    """What a layer does in a step, made once for as long as the rows stay the same."""

    down: Tensor | None = None
    """A of all, [in, columns]."""
    up: Tensor | None = None
    """B of all, [columns, out]."""
    own: Tensor | None = None
    """[rows, 1, columns]: 1 where a column belongs to the row's adapter; None where all do."""
    scale: Tensor | None = None
    shift: Tensor | None = None
    into: Tensor | None = None
    turns: list[tuple[Tensor | None, Tensor]] = field(default_factory=list)
    """Rows (None: all) and the turn of their adapter."""


class MixedLayer:
    """The adapters of one linear layer."""

    def __init__(self, layer: nn.Module, mixer: Mixer) -> None:
        self.mixer = mixer
        self.terms: dict[int, Terms] = {}
        """Those of each adapter, but for A and B."""
        self.ranks: dict[int, int] = {}
        """Of the adapters with A and B, in the order in which these are joined."""
        self.joined: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        """A of all [columns, in] and B of all [columns, out], in float32 and in the types that were asked for."""
        self.now: dict[tuple[Any, ...], _Now] = {}
        self.layer, self.changes_input = layer, False
        layer.register_forward_hook(self._after)

    def add(self, number: int, terms: Terms) -> None:
        given = {each.name: getattr(terms, each.name) for each in fields(Terms) if each.name not in ("down", "up")}
        kept = {name: term.detach().clone() for name, term in given.items() if term is not None}
        self.terms[number] = Terms(**kept)
        if terms.down is not None and terms.up is not None:
            self.ranks[number] = len(terms.down)
            others = [self.joined[torch.float32]] if self.joined else []
            downs, ups = zip(*others, (terms.down, terms.up.T), strict=True)
            down, up = (torch.cat([each.detach().float() for each in parts]) for parts in (downs, ups))
            self.joined = {torch.float32: (down, up)}  # both by column: a part of them is a slice
        self.now = {}
        if (terms.into is not None or terms.turn is not None) and not self.changes_input:
            self.layer.register_forward_pre_hook(self._before)
            self.changes_input = True

    def _before(self, layer: nn.Module, args: tuple[Any, ...]) -> Any:
        x, now = args[0], self._now(args[0])
        if now is None:
            return None
        # An adapter that changes the input has no A and B (see Terms), so it may be changed for the base's product.
        if now.into is not None:
            x = x * now.into
        for rows, turn in now.turns:
            x = turned(x, turn) if rows is None else x.index_copy(0, rows, turned(x[rows], turn))
        return (x, *args[1:])

    def _after(self, layer: nn.Module, args: tuple[Any, ...], made: Tensor) -> Tensor:
        x, now = args[0], self._now(args[0])
        if now is None:
            return made
        if now.down is not None and now.up is not None:
            low = x.to(now.down.dtype) @ now.down  # [rows, T, columns]
            if now.own is not None:
                low = low * now.own
            if made.dtype == now.up.dtype and made.is_contiguous():
                made = made.view(-1, made.size(-1)).addmm_(low.view(-1, low.size(-1)), now.up).view(made.shape)
            else:
                made = made.add_(low @ now.up)
        if now.scale is not None:
            made = made * now.scale
        return made if now.shift is None else made + now.shift

    def _now(self, x: Tensor) -> _Now | None:
        rows = self.mixer.rows
        key = (rows, x.size(1) == 1)
        found = self.now.get(key)
        if found is None:
            if not any(row in self.terms for row in rows):
                return None
            if len(self.now) >= KEPT:
                self.now.clear()
            found = self.now[key] = self._made(rows, x)
        return found

    def _made(self, rows: tuple[int, ...], x: Tensor) -> _Now:
        now = _Now()
        single = x.size(1) == 1 and x.device.type == "cpu"
        active = [number for number in self.ranks if number in rows]
        if active:
            # Few of many are taken out of the matrix of all; else it serves whichever rows come and go.
            chosen = active if len(active) == 1 or 2 * len(active) < len(self.ranks) else list(self.ranks)
            columns = tuple((number, self.ranks[number]) for number in chosen)
            few = single and len(rows) * sum(many for _, many in columns) < FEW
            kind = torch.float32 if few else x.dtype
            now.down, now.up = self._columns(chosen, x.device, kind)
            if len(chosen) > 1 or any(row != chosen[0] for row in rows):
                now.own = self.mixer.own(columns, now.down)
        now.scale, now.shift, now.into = (self._each(key, rows, x) for key in ("scale", "shift", "into"))
        for number, terms in self.terms.items():
            if terms.turn is None or number not in rows:
                continue
            own = [place for place, row in enumerate(rows) if row == number]
            places = None if len(own) == len(rows) else torch.tensor(own, device=x.device)
            kind = torch.float32 if single else x.dtype  # see FEW
            now.turns.append((places, terms.turn.to(device=x.device, dtype=kind)))
        return now

    def _columns(self, chosen: Sequence[int], device: torch.device, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        """A [in, columns] and B [columns, out] of the chosen ones, out of those of all that have them."""
        if kind not in self.joined:
            down, up = self.joined[torch.float32]
            self.joined[kind] = down.to(device=device, dtype=kind), up.to(device=device, dtype=kind)
        down, up = self.joined[kind]
        if len(chosen) < len(self.ranks):
            order = list(self.ranks)
            places = [order.index(number) for number in chosen]
            down, up = (_some(torch.split(of_all, list(self.ranks.values())), places) for of_all in (down, up))
        return down.T, up

    def _each(self, key: str, rows: Sequence[int], x: Tensor) -> Tensor | None:
        """[rows, 1, size], neutral for rows without the term; None where none has it."""
        there = {
            row: term for row in set(rows) if row in self.terms and (term := getattr(self.terms[row], key)) is not None
        }
        if not there:
            return None
        any_one = next(iter(there.values()))
        neutral = torch.zeros_like(any_one) if key == "shift" else torch.ones_like(any_one)
        return torch.stack([there.get(row, neutral) for row in rows])[:, None].to(device=x.device, dtype=x.dtype)


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Turn x [rows, T, in] block by block: x and x times (R less 1), which half types round less than x R."""
    each = x.reshape(-1, *turn.shape[:2]).transpose(0, 1).to(turn.dtype)  # [blocks, rows * T, size]
    return x + torch.bmm(each, turn).transpose(0, 1).reshape(x.shape).to(x.dtype)


def _some(parts: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Those parts as one; a single one stays where it is."""
    return parts[places[0]] if len(places) == 1 else torch.cat([parts[place] for place in places])
