"""The loss without logits is the loss with them, value and gradients; and where that cannot be, logits are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.kernels import cross_entropy
from luthier.kernels.cross_entropy import linear_cross_entropy, plain_head, without_head
from luthier.methods.base import METHODS
from luthier.rendering.row import IGNORED, Row
from luthier.tasks.base import TASKS
from tests.methods.zoo import DECODERS, base


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 1)
    monkeypatch.setattr(cross_entropy, "FEWEST", 8)
    monkeypatch.setattr(cross_entropy, "EVEN", 4)
    monkeypatch.setattr(cross_entropy, "SLICE_BYTES", 3 * 4 * 91)


def plain(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float(), targets, reduction="none")


def gradients(function: Any, dtype: torch.dtype, autocast: bool, weights: Tensor, bias: bool) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    head = nn.Linear(24, 91, bias=bias).to(dtype)
    hidden = torch.randn(30, 24, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 91, (30,))
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        losses = function(hidden * 1, head, targets)
        (losses * weights).sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == dtype and losses.dtype == torch.float32
    return losses.detach(), hidden.grad, *(p.grad for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weights", ["one", "mean", "each its own"])
def test_value_and_gradients_in_float32(weights: str, bias: bool) -> None:
    upstream = {"one": torch.ones(30), "mean": torch.full((30,), 1 / 30), "each its own": torch.rand(30)}[weights]
    for one, other in zip(
        gradients(plain, torch.float32, False, upstream, bias),
        gradients(linear_cross_entropy, torch.float32, False, upstream, bias),
        strict=True,
    ):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.bfloat16, False), (torch.float32, True), (torch.bfloat16, True), (torch.float16, False)],
)
def test_value_and_gradients_in_half_precision_are_as_near_to_the_truth(dtype: torch.dtype, autocast: bool) -> None:
    upstream = torch.rand(30)
    truth = gradients(plain, torch.float32, False, upstream, bias=True)
    usual = gradients(plain, dtype, autocast, upstream, bias=True)
    ours = gradients(linear_cross_entropy, dtype, autocast, upstream, bias=True)
    for right, one, other in zip(truth, usual, ours, strict=True):
        usual_error, error = ((x.float() - right).norm() / right.norm() for x in (one, other))
        assert error <= 1.3 * usual_error + 1e-6


def test_small_probabilities_survive_half_precision() -> None:
    head = nn.Linear(8, 5, bias=False, dtype=torch.float16)
    with torch.no_grad():
        head.weight.copy_(torch.eye(5, 8, dtype=torch.float16))
    hidden = torch.zeros(1, 8, dtype=torch.float16)
    hidden[0, 0] = 14  # the others have a probability of 8e-7, which half precision rounds to 0 or to 8e-7
    hidden.requires_grad_()
    (linear_cross_entropy(hidden, head, torch.tensor([0])) * 1024).sum().backward()
    assert hidden.grad is not None and hidden.grad[0, 1].item() == pytest.approx(1024 * 8.3e-7, rel=0.02)


def test_no_target_is_a_loss_of_nothing() -> None:
    hidden = torch.randn(0, 8, requires_grad=True)
    losses = linear_cross_entropy(hidden, nn.Linear(8, 5), torch.zeros(0, dtype=torch.long))
    assert losses.shape == (0,)
    losses.sum().backward()
    with torch.inference_mode():
        assert linear_cross_entropy(torch.randn(3, 8), nn.Linear(8, 5), torch.tensor([0, 1, 4])).shape == (3,)


ROWS = [Row([5, 6, 7, 8, 9, 1], [IGNORED, IGNORED, 7, IGNORED, 9, 1], ""), Row([5, 9, 1, 4], [IGNORED, 9, 1, 4], "")]


def with_logits(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    key = "position_ids" if "position_ids" in batch else "attention_mask"
    logits = model(input_ids=batch["input_ids"], use_cache=False, **{key: batch[key]}).logits
    logits = logits[:, -batch["labels"].size(1) :][:, :-1].float()
    targets = batch["labels"][:, 1:]
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return each.view(targets.shape).sum(1), (targets != IGNORED).sum(1)


def both(model: nn.Module, batch: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    found = []
    for function in (with_logits, TASKS.parse("complete").losses):
        model.zero_grad(set_to_none=True)
        sums, counts = function(model, batch)
        (sums.sum() / counts.sum()).backward()
        found.append([sums, counts, *(p.grad for p in model.parameters() if p.grad is not None)])
    yield from zip(*found, strict=True)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_architecture_in_full(kind: str, packed: bool) -> None:
    model = base(kind).eval()
    assert plain_head(model) is not None
    task = TASKS.parse("chat")
    for one, other in both(model, task.pack(ROWS) if packed else task.collate(ROWS, 1)):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert model(input_ids=torch.tensor([[3, 4]])).logits.size(-1) == model.config.vocab_size, "logits are back"


@pytest.mark.parametrize("name", ["lora", "prefix", "prompt", "p_tuning", "pfeiffer", "unipelt", "ia3"])
def test_methods(name: str) -> None:
    model = METHODS.parse(name).attach(base("qwen2"), steps=10).eval()
    assert plain_head(model) is not None
    for one, other in both(model, TASKS.parse("chat").collate(ROWS, 1)):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def capped(kind: str) -> nn.Module:
    import transformers as t

    small = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
        "intermediate_size": 64,
        "num_key_value_heads": 2,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    torch.manual_seed(0)
    if kind == "gemma2":
        return t.Gemma2ForCausalLM(t.Gemma2Config(**small, final_logit_softcapping=30.0))
    if kind == "cohere":
        small.pop("head_dim")
        return t.CohereForCausalLM(t.CohereConfig(**small, logit_scale=0.0625))
    small.pop("head_dim")
    return t.GraniteForCausalLM(t.GraniteConfig(**small, logits_scaling=4.0))


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite"])
def test_models_that_do_more_with_their_logits_are_noticed(kind: str) -> None:
    model = capped(kind).eval()
    if kind == "gemma2":  # a scale is as good before the head as behind it
        assert plain_head(model) is None
        with without_head(model) as head:
            assert head is None and model(input_ids=torch.tensor([[3, 4]])).logits.size(-1) == 400
    for one, other in both(model, TASKS.parse("chat").collate(ROWS, 1)):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_an_adapted_head_makes_logits() -> None:
    model = METHODS.parse({"name": "lora", "targets": "q_proj,lm_head"}).attach(base("llama"), steps=10).eval()
    assert plain_head(model) is None
    for one, other in both(model, TASKS.parse("chat").collate(ROWS, 1)):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_asking_a_model_leaves_it_as_it_was() -> None:
    model = base("llama").train()
    model.model.layers[0].eval()  # type: ignore[union-attr, operator]
    before, state = [m.training for m in model.modules()], torch.get_rng_state()
    assert plain_head(model) is not None
    assert [m.training for m in model.modules()] == before and torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="stop"), without_head(model):
        raise RuntimeError("stop")
    assert model(input_ids=torch.tensor([[3, 4]])).logits.size(-1) == model.config.vocab_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_float32_gives_no_probability_has_its_loss(dtype: torch.dtype) -> None:
    head = nn.Linear(4, 91, bias=False).to(dtype)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[7] = 200.0
    hidden = torch.ones(3, 4, dtype=dtype)
    hidden[1] = 0.01
    targets = torch.tensor([3, 3, 7])
    torch.testing.assert_close(linear_cross_entropy(hidden, head, targets), plain(hidden, head, targets))
    assert float(linear_cross_entropy(hidden, head, targets)[0].detach()) > 700
