"""Rows packed into one sequence learn what they learn apart, and never see one another."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import InputError
from luthier.data.batches import micro_batches, packed
from luthier.kernels import attention
from luthier.kernels.attention import NAME, row_by_row
from luthier.methods.base import METHODS
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.rendering.row import EVEN, IGNORED, Row, even_length
from luthier.runs.folder import RunFolder
from luthier.tasks.base import TASKS
from luthier.training.packing import prove_packing
from tests.conftest import alpaca_rows, review_rows, write_jsonl
from tests.methods.zoo import DECODERS, base


def some_rows(count: int, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = [draw.randrange(2, 300) for _ in range(draw.randrange(3, 12))]
        start = draw.randrange(1, len(ids))
        rows.append(Row(ids, [IGNORED] * start + ids[start:], ""))
    rows.append(Row([5, 6, 7], [5, 6, 7], ""))  # every token a target, as the task `complete` has it
    return rows


@pytest.mark.parametrize("kind", DECODERS)
def test_loss_and_gradients_of_packed_rows_are_those_of_the_rows_apart(kind: str) -> None:
    task, rows = TASKS.parse("chat"), some_rows(6)
    found = []
    for batch in (task.collate(rows, 1), task.pack(rows)):
        model = base(kind).train()
        loss = task.losses(model, batch)[0].sum()
        loss.backward()
        found.append((loss, int(task.targets(batch)), [p.grad for p in model.parameters() if p.grad is not None]))
    (apart, targets, gradients), (together, same, others) = found
    assert targets == same == sum(row.learned for row in rows)
    assert float(together) == pytest.approx(float(apart), rel=1e-5)
    for one, other in zip(gradients, others, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * float(one.abs().max()) + 1e-6)
    assert "position_ids" in task.pack(rows) and task.pack(rows)["input_ids"].shape[0] == 1


@pytest.mark.parametrize("kind", DECODERS)
def test_a_sequence_filled_up_learns_the_same(kind: str) -> None:
    task, rows, found = TASKS.parse("chat"), some_rows(80), []
    plain, filled = task.pack(rows), task.pack(rows, even=True)
    assert (
        filled["input_ids"].size(1) % EVEN == 0 and filled["input_ids"].size(1) > plain["input_ids"].size(1) >= 8 * EVEN
    )
    assert int(filled["attention_mask"].sum()) == int(plain["attention_mask"].sum()), "what fills up is not counted"
    assert task.targets(filled) == task.targets(plain)
    for batch in (plain, filled):
        model = base(kind).train()
        with row_by_row(model):
            loss = task.losses(model, batch)[0].sum()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()) + 1e-6)


@pytest.mark.parametrize("kind", DECODERS)
def test_under_autocast_packed_rows_are_as_near_to_the_truth_as_padded(kind: str) -> None:
    task, rows = TASKS.parse("chat"), some_rows(6)
    found = []
    for dtype, batch in ((None, task.collate(rows, 1)), (1, task.collate(rows, 1)), (1, task.pack(rows))):
        model = base(kind).train()
        with row_by_row(model), torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
            loss = task.losses(model, batch)[0].sum()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    truth, padded, packed_ = found
    usual, ours = (
        sum(float((x - right).norm() / (right.norm() + 1e-9)) for right, x in zip(truth, side, strict=True))
        for side in (padded, packed_)
    )
    assert ours <= 1.25 * usual


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("name", ["full", "lora", "prefix", "p_tuning_v2", "mam", "unipelt"])
def test_row_by_row_is_what_the_whole_mask_gives(kind: str, name: str) -> None:
    task, rows = TASKS.parse("chat"), some_rows(6)
    try:
        model = METHODS.parse(name).attach(base(kind), steps=10).eval()
    except InputError as refused:
        pytest.skip(f"stated: {refused}")
    for parameter in model.parameters():
        if parameter.requires_grad and name != "full":  # off the start, where most methods do nothing
            torch.nn.init.normal_(parameter, std=0.05)
    found = []
    for context in (nullcontext(), row_by_row(model)):
        model.zero_grad(set_to_none=True)
        with context:
            assert name != "full" or model.config._attn_implementation == ("sdpa" if not found else NAME)
            loss = task.losses(model, task.pack(rows))[0].sum()
            loss.backward()
        found.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    assert whole.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("lengths", [[5], [1, 33, 7, 70], [150, 2]], ids=str)
def test_rows_in_one_function_are_sdpa_of_each(
    dtype: torch.dtype, heads: tuple[int, int], lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK_BYTES", 1)  # sixteen queries at a time
    torch.manual_seed(0)
    edges = [0, *itertools.accumulate(lengths)]
    # Transposed, as a model's projections come.
    given = [torch.randn(edges[-1], h, 8, dtype=torch.float64).transpose(0, 1) for h in (heads[0], heads[1], heads[1])]
    upstream = torch.randn(edges[-1], heads[0], 8, dtype=torch.float64)

    def usual(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        made = [
            torch.nn.functional.scaled_dot_product_attention(
                q[None, :, a:b], k[None, :, a:b], v[None, :, a:b], is_causal=True, scale=0.3, enable_gqa=True
            )[0].transpose(0, 1)
            for a, b in itertools.pairwise(edges)
        ]
        return torch.cat(made)

    def found(function: Callable[..., torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in given]
        made = function(*inputs)
        made.backward(upstream.to(dtype))
        return [made.detach(), *(x.grad for x in inputs if x.grad is not None)]

    truth = found(usual, torch.float64)
    ours = found(lambda q, k, v: attention.causal_rows(q, k, v, edges, 0.3), dtype)
    allowed = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 0.01}[dtype]
    for right, one in zip(truth, ours, strict=True):
        assert one.dtype == dtype
        assert float((one.double() - right).norm() / right.norm()) < allowed


@pytest.mark.parametrize("autocast", [False, True])
def test_large_scores_keep_their_differences_in_bfloat16(autocast: bool) -> None:
    """Qwen2's keys have large biases: scores of some hundreds, which bfloat16 would round to whole numbers."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 40, 64).bfloat16() + torch.tensor([6.0, 0.0])[:, None, None, None].bfloat16()
    key = (key + 50).bfloat16()
    value = torch.randn(1, 40, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = attention.causal_rows(query, key, value, [0, 40], 0.125)
    q, k, v = (x.double()[None] for x in (query, key, value))
    right = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125)[0].transpose(0, 1)
    assert float((ours.double() - right).norm() / right.norm()) < 0.01


def test_row_by_row_is_used_and_leaves_no_trace(
    model_folder: Callable[..., Path], alpaca_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = attention.packed_attention

    def counting(*args: Any, **kwargs: Any) -> Any:
        rows = attention.packed_rows(kwargs.get("position_ids"), args[1])
        calls.append(0 if rows is None else len(rows.edges))
        return real(*args, **kwargs)

    monkeypatch.setattr(attention, "packed_attention", counting)
    config = RunConfig.load(
        None,
        [
            f"model={model_folder('llama')}",
            f"data={alpaca_file}",
            f"run={tmp_path / 'r'}",
            "method=full",
            "train.steps=2",
            "train.packing=true",
            "evaluate.before=false",
            "evaluate.generate=0",
        ],
    )
    train(config)
    assert max(calls) > 2, "rows shared a sequence, and were told apart in it"
    kept = json.loads((tmp_path / "r/model/config.json").read_text())
    assert NAME not in json.dumps(kept)


def test_a_change_in_one_row_moves_nothing_in_another() -> None:
    model, task, rows = base("llama"), TASKS.parse("chat"), some_rows(3)
    other = [Row([9] * len(rows[0].ids), rows[0].labels, ""), *rows[1:]]
    with torch.no_grad():
        one, two = (
            model(input_ids=b["input_ids"], position_ids=b["position_ids"], use_cache=False).logits[0]
            for b in (task.pack(rows), task.pack(other))
        )
    edge = len(rows[0].ids)
    assert torch.equal(one[edge:], two[edge:]) and not torch.allclose(one[:edge], two[:edge])


@pytest.mark.parametrize("kind", DECODERS)
def test_the_proof_passes_where_rows_stay_apart(kind: str) -> None:
    model = base(kind).train()
    prove_packing(model, 300)
    assert model.training


def test_the_proof_refuses_a_model_whose_attention_crosses() -> None:
    class Crossing(torch.nn.Module):
        """As a model with a state that runs on: the positions do not tell it where a row begins."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = base("llama")

        def forward(self, input_ids: Any, **_: Any) -> Any:
            return self.inner(input_ids=input_ids, use_cache=False)

    with pytest.raises(InputError, match="the attention of Crossing crosses from row to row"):
        prove_packing(Crossing(), 300)


def test_a_packed_run_has_the_curve_of_the_unpacked(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    data, curves = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(40)), []
    for name, packing in (("apart", "false"), ("packed", "true")):
        config = RunConfig.load(
            None,
            [
                f"model={model_folder('qwen2')}",
                f"data={data}",
                f"run={tmp_path / name}",
                "train.steps=6",
                "train.lr=1e-2",
                "method.dropout=0",
                "evaluate.generate=0",
                "train.max_length=100",
                f"train.packing={packing}",
            ],
        )
        train(config)
        curves.append([r["loss"] for r in RunFolder(tmp_path / name).history() if "loss" in r])
    assert curves[1] == pytest.approx(curves[0], abs=2e-4) and curves[0][-1] < curves[0][0]


def test_best_fit_holds_every_row_once_and_little_air() -> None:
    draw = random.Random(3)
    lengths = [draw.randrange(1, 100) for _ in range(500)]
    found = packed(range(500), lengths, 100)
    assert sorted(row for rows in found for row in rows) == list(range(500))
    assert all(sum(lengths[row] for row in rows) <= 100 for rows in found)
    assert len(found) <= 1.05 * sum(lengths) / 100 + 1
    assert packed([0, 1, 2, 3], [60, 50, 40, 50], 100) == [[0, 2], [1, 3]]
    apart = micro_batches(lengths[:64], micro_batch=4, by_length=True)
    together = micro_batches(lengths[:64], micro_batch=4, by_length=True, pack=100)
    assert sorted(chain(*apart)) == sorted(chain(*together)) == list(range(64)), "the same rows, packed or not"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=classify"], "train.packing: task classify has one answer for each sequence"),
        (["task=chat", "method=prompt"], "train.packing: method prompt puts its tokens in front of a sequence"),
    ],
)
def test_what_cannot_be_packed_is_refused_before_any_weights(
    overrides: list[str], said: str, model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.models.load.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    data = write_jsonl(tmp_path / "r.jsonl", review_rows(40))
    config = RunConfig.load(
        None,
        [f"model={model_folder('llama')}", f"data={data}", f"run={tmp_path / 'run'}", "train.packing=true", *overrides],
    )
    with pytest.raises(InputError, match=said):
        train(config)


def test_padded_lengths_are_few_and_none_is_longer_than_the_longest_row() -> None:
    lengths = [even_length(length, 500) for length in range(1, 501)]
    assert all(made >= length for length, made in enumerate(lengths, 1)) and max(lengths) == 500
    assert len(set(lengths)) <= 40 and sum(lengths) < 1.06 * sum(range(1, 501))


@pytest.mark.parametrize("name", ["chat", "complete"])
def test_a_padded_row_teaches_the_same_at_an_even_length(name: str) -> None:
    task, rows = TASKS.parse(name), [Row(list(range(1, 20)), list(range(1, 20)), ""), Row([5, 6], [5, 6], "")]
    tight, even = task.collate(rows, 0), task.collate(rows, 0, 512)
    assert tight["input_ids"].size(1) == 19 and even["input_ids"].size(1) == 24
    model = base("llama").eval()
    for one, other in zip(task.losses(model, tight), task.losses(model, even), strict=True):
        torch.testing.assert_close(one, other)
