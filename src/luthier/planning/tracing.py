"""One forward and backward pass without numbers: which tensors live how long, and what is multiplied.

Modules and methods run as they are, on tensors that have a shape and no memory (torch's FakeTensorMode), so whatever
transformers, PEFT and our own functions keep for the backward pass is counted, not guessed by a formula.
"""

import gc
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from luthier.kernels import frozen_linear
from luthier.kernels.apply import patched
from luthier.kernels.attention import ROWS, PackedRows

_ATEN = torch.ops.aten
PRODUCTS = (_ATEN.mm, _ATEN.addmm, _ATEN.addmm_, _ATEN.bmm, _ATEN.baddbmm)
"""Matrix products: they count as operations, not as bytes that are moved."""
MOVES_NOTHING = (_ATEN.empty, _ATEN.empty_like, _ATEN.empty_strided, _ATEN.new_empty, _ATEN._unsafe_view)
"""Operations that are no views and yet touch no byte."""
NOT_MOVED = frozenset((*PRODUCTS, *MOVES_NOTHING))


def _attention(operation: Any) -> Any:
    """The formula of an attention kernel: torch has none for a CPU's, and counts what a causal one leaves out."""
    names = [argument.name for argument in operation.default._schema.arguments]
    products = 5 if names[0].startswith("grad") else 2  # the backward pass computes the scores again

    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        batch, heads, queries, width = given["query"].shape
        whole: int = 2 * products * batch * heads * queries * given["key"].size(2) * width
        return whole // 2 if given.get("is_causal") else whole

    return count


FLOPS: dict[Any, Any] = flop_registry | {
    operation: _attention(operation)
    for kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    for operation in (getattr(_ATEN, f"_scaled_dot_product_{kernel}{suffix}") for suffix in ("", "_backward"))
}
"""Operation -> function of its arguments and `out_val` that gives its floating-point operations."""


class Trace(NamedTuple):
    """Memory and operations of one pass, without the weights."""

    kept: float
    """Bytes kept for the backward pass when the forward pass ends."""
    forward_peak: float
    """Most bytes alive at a time in the forward pass."""
    backward_peak: float
    """Most bytes alive at a time in the backward pass."""
    flops: float
    """Floating-point operations of matrix products, forward and backward; the head is left out."""
    moved: float
    """Bytes that all other operations read and write."""
    calls: float
    """Number of operations."""
    forward: float
    """Floating-point operations of the forward pass alone."""

    def grown(self, other: "Trace", by: float) -> "Trace":
        """Extrapolate from one and two layers to any number: self + by (other - self), field by field."""
        return Trace(*(one + by * (two - one) for one, two in zip(self, other, strict=True)))


def trace(
    model: nn.Module,
    lengths: Iterable[int],
    *,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    device: str,
    packed: bool,
    classify: bool,
    again: bool,
    compile: bool = False,
    undivided: bool = False,
    trained: torch.dtype | None = None,
) -> Trace:
    """Trace one pass over rows of these lengths; `model` is on the meta device with its method attached.

    With `undivided` tensors are worked on whole, as on a GPU, whatever `device` the trace is on.

    Frozen weights count as `dtype`, those that train as `trained`, if it is given. A compiled model counts as it is
    written, which is more. With `again` gradients of an earlier pass exist and are not counted. Raises whatever the
    model raises where it cannot run without numbers.
    """
    rows = list(lengths)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _materialize(model, mode, dtype, trained, device)
    if again:
        with mode:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    known = {tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers(), *grads)}
    whole = _undivided() if undivided else nullcontext()
    with patched(model, packed=packed, compile=compile, trial=False), _one_expert(), whole, mode:
        inputs = _inputs(rows, device, packed)
        head = None if classify else model.get_output_embeddings()  # type: ignore[operator]
        if head is not None:
            head.forward = lambda hidden: hidden
        casting = torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None)
        try:
            return _run(model, inputs, known, casting)
        finally:
            if head is not None:
                del head.forward


def _run(model: Any, inputs: dict[str, Tensor], known: Iterable[Any], autocast: Any) -> Trace:
    gc.freeze()  # what exists by now is not looked through again and again
    try:
        with _Live(known) as live:
            with autocast:
                made = model(**inputs).logits
            kept, forward_peak, forward = live.now, live.peak, live.flops
            live.peak, live.sweeps = live.now, getattr(model, "is_activation_checkpointing", False)
            made.sum().backward()
    finally:
        gc.unfreeze()
    return Trace(kept, forward_peak, live.peak, live.flops, live.moved, live.calls, forward)


@contextmanager
def _undivided() -> Iterator[None]:
    usual, frozen_linear.PART_BYTES = frozen_linear.PART_BYTES, sys.maxsize
    try:
        yield
    finally:
        frozen_linear.PART_BYTES = usual


@contextmanager
def _one_expert() -> Iterator[None]:
    """Let one expert see all tokens: products and memory of experts in groups, which torch traces in bfloat16 only."""
    from transformers.integrations import moe

    # Goes when torch traces `grouped_mm` in other types (seen in torch 2.13 with transformers 5.23).
    usual: Any = moe._grouped_mm
    moe._grouped_mm = _grouped
    try:
        yield
    finally:
        moe._grouped_mm = usual


def _grouped(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    with torch.autocast(input.device.type, enabled=False):
        return input.to(weight.dtype) @ weight[0]  # [tokens, in] -> [tokens, out]


def _inputs(rows: list[int], device: str, packed: bool) -> dict[str, Tensor]:
    shape = (1, sum(rows)) if packed else (len(rows), max(rows))
    ids = torch.zeros(shape, dtype=torch.long, device=device)
    if not packed:
        return {"input_ids": ids}  # a mask would be looked into, and takes little
    places, edges = torch.zeros_like(ids), [0, *accumulate(rows)]
    setattr(places, ROWS, PackedRows(edges, torch.zeros(len(edges), dtype=torch.int32, device=device), max(rows)))
    return {"input_ids": ids, "position_ids": places}


def _materialize(
    model: nn.Module, mode: FakeTensorMode, dtype: torch.dtype, trained: torch.dtype | None, device: str
) -> None:
    """Replace tensors on the meta device by tensors of the right type and device, still without memory."""
    made: dict[int, Tensor] = {}
    for tensors in (each for module in model.modules() for each in (module._parameters, module._buffers)):
        for name, tensor in [(name, tensor) for name, tensor in tensors.items() if tensor is not None]:
            if id(tensor) not in made:
                weight = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
                of_weight = (trained or tensor.dtype) if tensor.requires_grad else dtype
                with mode:
                    empty = torch.empty(tensor.shape, dtype=of_weight if weight else tensor.dtype, device=device)
                    if isinstance(tensor, nn.Parameter):
                        empty = nn.Parameter(empty, tensor.requires_grad)
                    made[id(tensor)] = empty
            tensors[name] = made[id(tensor)]  # type: ignore[assignment]


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors alive, most of them at a time, what was read and written, and what was multiplied.

    Torch's FlopCounterMode counts the same; as a mode of its own it takes a quarter of the time of a trace.
    """

    def __init__(self, known: Iterable[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.moved = self.calls = self.flops = 0
        # Under a mode, layers that are computed again leave their tensors to the garbage collector; without one not.
        self.sweeps = False
        self.seen: dict[int, Any] = {id(storage): storage for storage in known}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if function.namespace == "prim":  # a question about a tensor, such as its device
            return made
        leaves = [made] if isinstance(made, Tensor) else tree_leaves(made)
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        for tensor in outputs:
            storage = tensor.untyped_storage()
            if id(storage) not in self.seen:
                self.seen[id(storage)] = weakref.ref(storage, partial(self._gone, id(storage), storage.nbytes()))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        self.calls += 1
        if (flops := FLOPS.get(function.overloadpacket)) is not None:
            self.flops += flops(*args, **(kwargs or {}), out_val=made)
        if self.sweeps and self.calls % 8 == 0:
            gc.collect()
        if function.overloadpacket not in NOT_MOVED and not getattr(function, "is_view", False):
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.moved += sum(t.numel() * t.element_size() for t in (*inputs, *outputs))
        return made

    def _gone(self, key: int, size: int, _: Any) -> None:
        self.now -= size
        self.seen.pop(key, None)
