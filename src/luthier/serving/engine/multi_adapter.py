"""Multi-adapter inference: the rows of one batch share a base model and each has its own adapter.

What an adapter does to a linear layer is expressed by a few tensors,

    y' = s * (W R (c * x) + B A x) + b

with W of the base: A [rank, in], B [out, rank], s and b [out], c [in], R [in, in] block-diagonal. LoRA and its variants
have A and B, DoRA also s (its magnitudes over the norms of W + BA, arXiv 2402.09353, section 4.1), (IA)3 s or c, BitFit
b, OFT R. The A of all adapters are concatenated into one matrix, and so are the B, so a step costs two products however
many adapters its rows have; columns of other rows' adapters are zeroed between the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class AdapterDelta:
    """What one adapter does to one layer; None means nothing."""

    down: Tensor | None = None  # A, [rank, in]
    up: Tensor | None = None  # B times the adapter's scaling, [out, rank]
    output_scale: Tensor | None = None  # s, [out]
    bias: Tensor | None = None  # b, [out]
    input_scale: Tensor | None = None  # c, [in]; there is no A with it
    rotation: Tensor | None = None  # R - 1, [blocks, size, size], multiplied to blocks of x from the left; no A with it


def deltas_of(model: nn.Module, name: str = "default") -> dict[str, AdapterDelta] | None:
    """Return layer name -> delta of a loaded PEFT model; None if the adapter cannot be expressed as deltas."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    if getattr(model.active_peft_config, "bias", "none") not in (None, "none"):  # overwritten biases of the base
        return None
    base: Any = model.get_base_model()  # type: ignore[operator]
    found: dict[str, AdapterDelta] = {}
    for layer, module in base.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):  # fully trained modules
            return None
        if isinstance(module, BaseTunerLayer):
            delta = _delta(module, name)
            if delta is None:
                return None
            found[layer] = delta
    return found


def _delta(layer: Any, name: str) -> AdapterDelta | None:  # noqa: PLR0911 (one for each kind)
    from peft.tuners.adalora import SVDLinear
    from peft.tuners.ia3 import IA3Layer
    from peft.tuners.lora import LoraLayer
    from peft.tuners.oft import OFTLayer
    from peft.tuners.vera import VeraLayer

    from luthier.methods.layers.bias import BiasDelta

    base = layer.get_base_layer()
    linear = getattr(getattr(base, "weight", None), "ndim", 0) == 2 and not isinstance(base, nn.Embedding)
    if not linear or layer.merged or name not in layer.active_adapters:
        return None
    if isinstance(layer, SVDLinear):
        down = layer.lora_A[name] * layer.lora_E[name]
        return AdapterDelta(down, layer.lora_B[name] * (layer.scaling[name] / (layer.ranknum[name] + 1e-5)))
    if isinstance(layer, LoraLayer):
        return _lora(layer, name)
    if isinstance(layer, VeraLayer) and layer.vera_A is not None and layer.vera_B is not None:
        rank, size_in, size_out = len(layer.vera_lambda_d[name]), layer.in_features, layer.out_features
        down = layer.vera_A[name][:rank, :size_in] * layer.vera_lambda_d[name][:, None]
        return AdapterDelta(down, layer.vera_B[name][:size_out, :rank] * layer.vera_lambda_b[name][:, None])
    if isinstance(layer, IA3Layer):
        factor = layer.ia3_l[name].flatten()
        return AdapterDelta(input_scale=factor) if layer.is_feedforward else AdapterDelta(output_scale=factor)
    if isinstance(layer, BiasDelta):
        return AdapterDelta(bias=layer.held("delta")[name])
    if isinstance(layer, OFTLayer) and layer.oft_R[name].weight.ndim == 2:
        oft: Any = layer.oft_R[name]
        full, size = oft.get_weight(), oft.block_size
        each = torch.arange(len(full) // size)  # PEFT computes the rotation in every call
        blocks = full.view(len(each), size, len(each), size)[each, :, each]
        return AdapterDelta(rotation=blocks - torch.eye(size, device=full.device))
    return None


def _lora(layer: Any, name: str) -> AdapterDelta | None:
    dora = layer.use_dora.get(name)
    if layer.lora_variant and not dora:
        return None
    if layer.lora_bias.get(name) or name not in layer.lora_A or layer.lora_A[name].weight.ndim != 2:
        return None
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight * layer.scaling[name]
    if not dora:
        return AdapterDelta(down, up)
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    base = layer.get_base_layer()
    weight = dequantize_module_weight(base).to(up.dtype)
    weight = weight.T if isinstance(base, Conv1D) else weight
    scale = layer.lora_magnitude_vector[name].weight / torch.linalg.norm(weight + up @ down, dim=1)
    # DoRA scales only the product, and y contains the base's bias.
    bias = None if base.bias is None else (1 - scale) * base.bias.to(scale.dtype)
    return AdapterDelta(down, up, scale, bias)


class MultiAdapter:
    """Adapters over the linear layers of one model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers: dict[str, MultiAdapterLayer] = {}
        self.number = 0
        self.rows: tuple[int, ...] = ()  # Adapter number of each row of the next step

    def add(self, deltas: dict[str, AdapterDelta]) -> int:
        """Add an adapter and return its number, from 1 on; the base is 0."""
        self.number += 1
        for name, delta in deltas.items():
            if name not in self.layers:
                self.layers[name] = MultiAdapterLayer(self.model.get_submodule(name), self)
            self.layers[name].add(self.number, delta)
        return self.number


KEPT = 4  # Sets of rows for which a layer caches its batch: steps for ready rows and for rows being prefilled alternate

FEW = 128
"""Rows times columns of A below which a CPU is faster in float32: half precision costs 15 microseconds a product."""


@dataclass(slots=True)
class _Batch(AdapterDelta):
    """What a layer applies to its rows: A [in, columns] and B [columns, out] of all adapters, else [rows, 1, size]."""

    mask: Tensor | None = None  # [rows, 1, columns]: 1 where a column belongs to the row's adapter; None if all do
    rotations: list[tuple[Tensor | None, Tensor]] = field(default_factory=list)
    """(rows, or None for all rows; rotation of their adapter)."""


class MultiAdapterLayer:
    """The adapters of one linear layer."""

    def __init__(self, layer: nn.Module, adapters: MultiAdapter) -> None:
        self.adapters = adapters
        self.deltas: dict[int, AdapterDelta] = {}  # Adapter number -> its delta without A and B
        self.ranks: dict[int, int] = {}  # Rank of the adapters with A and B, in the order of concatenation
        self.joined: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        """A of all adapters [columns, in] and B of all [columns, out], in float32 and in each type used so far."""
        self.batches: dict[tuple[Any, ...], _Batch] = {}
        self.layer, self.changes_input = layer, False
        layer.register_forward_hook(self._after)

    def add(self, number: int, delta: AdapterDelta) -> None:
        """Add the delta of an adapter; its tensors are copied."""
        own = {key: getattr(delta, key) for key in ("output_scale", "bias", "input_scale", "rotation")}
        self.deltas[number] = AdapterDelta(**{key: t.detach().clone() for key, t in own.items() if t is not None})
        if delta.down is not None and delta.up is not None:
            self.ranks[number] = len(delta.down)
            others = [self.joined[torch.float32]] if self.joined else []
            downs, ups = zip(*others, (delta.down, delta.up.T), strict=True)
            down, up = (torch.cat([each.detach().float() for each in parts]) for parts in (downs, ups))
            self.joined = {torch.float32: (down, up)}  # both by column, so that an adapter's part is a slice
        self.batches = {}
        if (delta.input_scale is not None or delta.rotation is not None) and not self.changes_input:
            self.layer.register_forward_pre_hook(self._before)
            self.changes_input = True

    def _before(self, layer: nn.Module, args: tuple[Any, ...]) -> Any:
        x, batch = args[0], self._batch(args[0])
        if batch is None:
            return None
        # An adapter that changes the input has no A and B, so only the base's product sees the change.
        if batch.input_scale is not None:
            x = x * batch.input_scale
        for rows, rotation in batch.rotations:
            x = rotated(x, rotation) if rows is None else x.index_copy(0, rows, rotated(x[rows], rotation))
        return (x, *args[1:])

    def _after(self, layer: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        x, batch = args[0], self._batch(args[0])
        if batch is None:
            return y
        if batch.down is not None and batch.up is not None:
            low = x.to(batch.down.dtype) @ batch.down  # [rows, T, columns]
            if batch.mask is not None:
                low = low * batch.mask
            if y.dtype == batch.up.dtype and y.is_contiguous():
                y = y.view(-1, y.size(-1)).addmm_(low.view(-1, low.size(-1)), batch.up).view(y.shape)
            else:
                y = y.add_(low @ batch.up)
        if batch.output_scale is not None:
            y = y * batch.output_scale
        return y if batch.bias is None else y + batch.bias

    def _batch(self, x: Tensor) -> _Batch | None:
        rows = self.adapters.rows
        key = (rows, x.size(1) == 1)
        if key not in self.batches:
            if not any(row in self.deltas for row in rows):
                return None
            if len(self.batches) >= KEPT:
                self.batches.clear()
            self.batches[key] = self._new_batch(rows, x)
        return self.batches[key]

    def _new_batch(self, rows: tuple[int, ...], x: Tensor) -> _Batch:
        batch, keys = _Batch(), ("output_scale", "bias", "input_scale")
        batch.output_scale, batch.bias, batch.input_scale = (self._stack(key, rows, x) for key in keys)
        single = x.size(1) == 1 and x.device.type == "cpu"
        active = [number for number in self.ranks if number in rows]
        if active:
            # A few of many are taken out of the matrix of all; otherwise it serves whichever rows come and go.
            chosen = active if len(active) == 1 or 2 * len(active) < len(self.ranks) else list(self.ranks)
            columns = tuple((number, self.ranks[number]) for number in chosen)
            few = single and len(rows) * sum(many for _, many in columns) < FEW
            batch.down, batch.up = self._columns(chosen, x.device, torch.float32 if few else x.dtype)
            if len(chosen) > 1 or any(row != chosen[0] for row in rows):
                batch.mask = mask_of(rows, columns, batch.down.dtype, x.device)
        for number, delta in self.deltas.items():
            if delta.rotation is not None and number in rows:
                own = [index for index, row in enumerate(rows) if row == number]
                indices = None if len(own) == len(rows) else torch.tensor(own, device=x.device)
                dtype = torch.float32 if single else x.dtype  # see FEW
                batch.rotations.append((indices, delta.rotation.to(device=x.device, dtype=dtype)))
        return batch

    def _columns(self, chosen: Sequence[int], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A [in, columns] and B [columns, out] of the chosen adapters."""
        if dtype not in self.joined:
            down, up = self.joined[torch.float32]
            self.joined[dtype] = down.to(device=device, dtype=dtype), up.to(device=device, dtype=dtype)
        down, up = self.joined[dtype]
        if len(chosen) < len(self.ranks):
            ranks = list(self.ranks.values())
            parts = [dict(zip(self.ranks, torch.split(of_all, ranks), strict=True)) for of_all in (down, up)]
            kept = [[of_all[number] for number in chosen] for of_all in parts]
            down, up = (each[0] if len(each) == 1 else torch.cat(each) for each in kept)  # a single one is not copied
        return down.T, up

    def _stack(self, key: str, rows: Sequence[int], x: Tensor) -> Tensor | None:
        """[rows, 1, size], neutral for rows without this tensor; None if no row has it."""
        held = {row: getattr(self.deltas.get(row), key, None) for row in set(rows)}
        found = {row: tensor for row, tensor in held.items() if tensor is not None}
        if not found:
            return None
        one = next(iter(found.values()))
        neutral = torch.zeros_like(one) if key == "bias" else torch.ones_like(one)
        return torch.stack([found.get(row, neutral) for row in rows])[:, None].to(device=x.device, dtype=x.dtype)


@lru_cache(maxsize=4 * KEPT)
def mask_of(
    rows: tuple[int, ...], columns: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return [rows, 1, columns]: 1 where a column of (adapter, number of columns), ... is of the row's adapter."""
    owner = torch.tensor([number for number, many in columns for _ in range(many)], device=device)
    return (owner == torch.tensor(rows, device=device)[:, None])[:, None].to(dtype)


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate x [rows, T, in] block by block as x + x (R - 1), which rounds less in half precision than x R."""
    each = x.reshape(-1, *rotation.shape[:2]).transpose(0, 1).to(rotation.dtype)  # [blocks, rows * T, size]
    return x + torch.bmm(each, rotation).transpose(0, 1).reshape(x.shape).to(x.dtype)
