"""Packed rows on a GPU: torch's kernel is used where it proves itself, and never where it does not."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels import attention
from luthier.kernels.attention import PackedRows, packed_rows, row_by_row
from luthier.tasks.base import TASKS
from tests.methods.zoo import DECODERS, attached, base, shake
from tests.training.test_packing import some_rows

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch's kernel runs nowhere else")
HALF = torch.bfloat16


def standing_in(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: PackedRows,
    scale: float | None,
    window: tuple[int, int],
    begins: tuple[int, int] = (0, 0),
) -> Tensor:
    """What the kernel does, by its documentation, in float32: [T, heads, D]."""
    made = []
    for begin, end in pairwise(rows.starts.tolist()):
        places = torch.arange(end - begin)
        ago = places[:, None] - places[None]
        left, right = window[0] + begins[0], window[1] + begins[1]
        seen = (ago >= -right) & ((ago <= left) | (window[0] < 0))
        q, k, v = (x[begin:end].float().transpose(0, 1)[None] for x in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)
        made.append(out[0].transpose(0, 1).to(query.dtype))
    return torch.cat(made)


@pytest.fixture(autouse=True)
def nothing_known() -> Any:
    attention._proved.cache_clear()
    yield
    attention._proved.cache_clear()


def proved() -> bool:
    attention._proved.cache_clear()
    return attention._proved(HALF, torch.device("cpu"), 4, 2, 16)


def test_a_kernel_is_used_only_where_values_gradients_and_window_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not proved(), "torch has none for a CPU"
    monkeypatch.setattr(attention, "kernel", standing_in)
    assert proved()
    for wrong in ((1, 0), (-1, 0), (0, 1)):  # a window one wider, one narrower; one token of the future
        monkeypatch.setattr(attention, "kernel", lambda *a, wrong=wrong: standing_in(*a, begins=wrong))
        assert not proved()
    monkeypatch.setattr(attention, "kernel", lambda *a: standing_in(*a).detach())
    assert not proved(), "no gradient"
    monkeypatch.setattr(
        attention,
        "kernel",
        lambda q, k, v, rows, *a: standing_in(q, k, v, PackedRows([0, 128], rows.starts[[0, 2]], 128), *a),
    )
    assert not proved(), "crosses from row to row"


def test_the_rows_are_read_off_the_positions_once() -> None:
    places = torch.tensor([[0, 1, 2, 0, 0, 1]])
    query = torch.zeros(1, 2, 6, 8)
    rows = packed_rows(places, query)
    assert rows is not None and rows.edges == rows.starts.tolist() == [0, 3, 4, 6]
    assert rows.starts.dtype == torch.int32
    assert rows.longest == 3 and packed_rows(places, query) is rows
    assert packed_rows(places, query[:, :, :5]) is None and packed_rows(None, query) is None


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("name", ["lora", "prefix", "unipelt"])
def test_a_model_learns_with_it_what_it_learns_without(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(attention, "_on_gpu", lambda query: True)
    monkeypatch.setattr(attention, "kernel", lambda *a: (calls.append(1), standing_in(*a))[1])
    task, rows, found = TASKS.parse("chat"), some_rows(6), []
    _, model = attached(name, kind)
    shake(model)
    for context in (nullcontext(), row_by_row(model)):
        model.zero_grad(set_to_none=True)
        with context, torch.autocast("cpu", HALF):
            loss = task.losses(model, task.pack(rows))[0].sum()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    layers = base(kind).config.num_hidden_layers
    assert (len(calls) >= layers) == (name == "lora"), "a prefix, which all rows see, is beyond the kernel"
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm()) <= 0.1 * float(one.norm()) + 1e-5


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "few", "width"), [(14, 2, 64), (32, 32, 128)])
def test_torchs_own_kernel_proves_itself_here(dtype: torch.dtype, heads: int, few: int, width: int) -> None:
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("the kernel is for compute capability 8.0 and above")
    assert attention._proved(dtype, torch.device("cuda"), heads, few, width)
