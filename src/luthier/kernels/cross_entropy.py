"""Cross-entropy of a linear head without its logits: chunk by chunk, forward and backward in one pass.

The head is applied to labelled tokens alone, some at a time; the gradient of their logits, p - onehot, is known at
once, so each chunk becomes its losses and its part of the hidden states' gradient, and is dropped. (Hsu et al. 2024,
arXiv 2410.10989, chunk as here; Wijmans et al. 2024, arXiv 2411.09009, go further and fuse the matrix product.)
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.kernels.frozen_linear import autocast_type, evaluating, parts

CHUNK_BYTES = 5 * 2**24
"""Bytes of a chunk's logits: 256 tokens of Qwen2's in half precision."""
SLICE_BYTES = 2**22
"""Bytes of the logits in float32 that a CPU turns into probabilities at a time: they should stay in its cache."""
RAREST = 1e-30
"""Probability below which float32 has too few digits, or none, to take the logarithm of."""
EVEN = 32
FEWEST = 64  # tokens of a chunk: fewer would leave the matrix product slow


def linear_cross_entropy(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """-log softmax(head(hidden))[target] of each token, in float32, under autocast too: [N, H], [N] -> [N]."""
    if not len(targets):
        return hidden.float().sum(1)  # in the graph, and empty
    return _LinearCrossEntropy.apply(hidden, head.weight, head.bias, targets)  # type: ignore[no-any-return, no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, for an output gradient of 1 per token, and scaled in backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        dtype = autocast_type(hidden, weight.dtype)
        wants_hidden = ctx.needs_input_grad[0]
        with torch.autocast(hidden.device.type, enabled=False):
            cast = weight.to(dtype)
            losses = torch.empty(len(targets), device=hidden.device)
            # Probabilities far below 1 vanish in half precision, where loss scaling would have kept them.
            half = dtype is torch.float16
            boost = 1024.0 if half else 1.0
            grad_hidden = torch.empty_like(hidden, dtype=torch.float32 if half else None) if wants_hidden else None
            for part, _, logits in _chunks(hidden, cast, bias):
                here = targets[part]
                losses[part] = _losses_and_grad(logits[: len(here)], here, boost)
                if grad_hidden is not None:
                    grad_hidden[part] = (logits @ cast)[: len(here)]  # by now their gradient
                    if half:
                        grad_hidden[part] /= boost
        ctx.save_for_backward(grad_hidden, hidden, weight, bias, targets)
        ctx.dtype = dtype
        return losses

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        grad_hidden, hidden, weight, bias, targets = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias, _ = ctx.needs_input_grad
        scaled = (grad_hidden * grad_output[:, None]).to(hidden.dtype) if wants_hidden else None
        if not wants_weight and not wants_bias:
            return scaled, None, None, None
        # A head that trains needs the logits once more: its gradient is weighted by the output's.
        cast = weight.detach().to(ctx.dtype)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        for part, chunk, made in _chunks(hidden, cast, bias):
            logits = made[: len(chunk)]
            _losses_and_grad(logits, targets[part], scale=grad_output[part], grad_bias=grad_bias)
            if grad_weight is not None:
                grad_weight += (logits.t() @ chunk).float()
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return scaled, grad_weight, None if grad_bias is None else grad_bias.to(bias.dtype), None


def _chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(place, tokens, their logits) of each chunk; the next one's logits take the same memory."""
    # Zeros fill each up to a multiple of EVEN tokens: for each number of tokens oneDNN would compile and keep kernels.
    dtype = weight.dtype
    size = max(FEWEST, CHUNK_BYTES // (dtype.itemsize * len(weight))) // EVEN * EVEN or FEWEST
    chunks = max(1, -(-len(hidden) // size))
    size = min(size, -(-len(hidden) // (chunks * EVEN)) * EVEN)  # alike: a small one would be slow
    room = hidden.new_empty(size, len(weight), dtype=dtype)
    for start in range(0, len(hidden), size):
        part = slice(start, min(start + size, len(hidden)))
        chunk = hidden[part].to(dtype)
        rows = -(-len(chunk) // EVEN) * EVEN
        filled = F.pad(chunk, (0, 0, 0, rows - len(chunk)))
        if bias is None:
            torch.mm(filled, weight.t(), out=room[:rows])
        else:
            torch.addmm(bias.to(dtype), filled, weight.t(), out=room[:rows])
        yield part, chunk, room[:rows]


def _losses_and_grad(
    logits: Tensor, targets: Tensor, boost: float = 1.0, scale: Tensor | None = None, grad_bias: Tensor | None = None
) -> Tensor:
    """The losses, in float32; `logits` becomes their gradient, times `boost` and `scale`, its sum `grad_bias`."""
    losses = torch.empty(len(logits), device=logits.device)
    for part in parts(logits, 4, SLICE_BYTES):
        right = targets[part, None]
        grad = logits[part].softmax(1, dtype=torch.float32)
        chances = grad.gather(1, right)[:, 0]
        rare, losses[part] = chances < RAREST, -chances.log()
        if logits.is_cuda or bool(rare.any()):  # a GPU would be waited for
            scores = logits[part].float()
            exact = scores.logsumexp(1) - scores.gather(1, right)[:, 0]
            losses[part] = torch.where(rare, exact, losses[part])
        grad.scatter_add_(1, right, torch.full_like(right, -1, dtype=grad.dtype))
        if scale is not None:
            grad.mul_(scale[part, None])
        if grad_bias is not None:
            grad_bias += grad.sum(0)
        if boost != 1.0:
            grad.mul_(boost)
        logits[part] = grad
    return losses


@contextmanager
def without_head(model: nn.Module) -> Iterator[nn.Linear | None]:
    """Let `model` return hidden states for logits; yields its head, or None where more makes logits (a cap)."""
    head = plain_head(model)
    with nullcontext() if head is None else _idle(head):
        yield head


@contextmanager
def _idle(head: nn.Linear) -> Iterator[None]:
    head.forward = lambda hidden: hidden  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The layer that makes logits, if it is linear and nothing (such as a cap) comes after it, by one trial."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if type(head) is not nn.Linear:
        return None
    if not hasattr(head, "makes_logits"):
        with evaluating(model):
            tokens = torch.tensor([[0, 1]], device=head.weight.device)
            logits = model(input_ids=tokens, use_cache=False).logits
            with _idle(head):
                hidden = model(input_ids=tokens, use_cache=False).logits
            same = hidden.size(-1) == head.in_features
            same = same and torch.equal(head(hidden.to(head.weight.dtype)).float(), logits.float())
            head.makes_logits = same  # type: ignore[assignment]
    return head if head.makes_logits else None
