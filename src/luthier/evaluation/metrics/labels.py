"""Accuracy, macro-F1 and Matthews correlation for rows that each have one of a set of labels.

A classification head picks its best class. A causal model picks the label that gets the highest likelihood as the
answer, the sum of log p over its tokens, including the end token: so the untouched base is judged on what it knows, not
on whether it guesses the wording. The labels to choose from are all those of the data, including training rows.

The prompt is read once into a KV cache, and all labels follow it as a batch of continuations: P + L A tokens for a
prompt of P and L labels of A, instead of L (P + A). Some tuners put tokens in front and some caches slide, so each
model is tested once, on its longest prompts; if both ways differ, each pair of prompt and label is a row.

Macro-F1 is the plain mean of the F1 of the classes that occur, so rare classes count as much. Matthews correlation
(for two classes Matthews 1975, for more Gorodkin 2004) is 0 for guessing, whatever the shares of the classes, and 1 for
no mistake: (c n - sum_k p_k t_k) / sqrt((n^2 - sum_k p_k^2) (n^2 - sum_k t_k^2)) with c right of n, and p_k and t_k how
often class k was predicted and true; 0 if only one class was predicted, or exists.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.metrics.base import Evaluation, Metric, SumMetric, Table
from luthier.evaluation.records.context import WORK, EvalContext, Record, labelled, split_answer
from luthier.rendering.row import IGNORED, Row

if TYPE_CHECKING:
    from torch import Tensor

    Sums = list[list[float]]
    """For each prompt -log p of each label."""

CACHE_BYTES = 2**29
"""Most bytes of KV cache for the prompts of one pass, repeated for each label of it."""
TRIAL_ROWS = 3
NEAR = 2e-2
"""Nats of an answer within which both ways are the same; half precision rounds a logit in its second decimal."""


def _counts(records: Sequence[Record]) -> NDArray[Any]:
    """[records, 3 classes]: whether class k is right here, was predicted, is true."""
    names = sorted({str(r[key]) for r in records for key in ("label", "chosen")})
    predicted, true = (
        np.array([[str(r[key]) == name for name in names] for r in records], bool).reshape(len(records), len(names))
        for key in ("chosen", "label")
    )
    return np.concatenate([predicted & true, predicted, true], axis=1).astype(float)


def _thirds(sums: NDArray[Any]) -> Any:
    return sums.reshape(len(sums), 3, -1).transpose(1, 0, 2)  # right, predicted, true: [draws, classes] each


def _accuracy(sums: NDArray[Any]) -> NDArray[Any]:
    right, _, true = _thirds(sums)
    return np.asarray(right.sum(1) / np.maximum(true.sum(1), 1))


def _macro_f1(sums: NDArray[Any]) -> NDArray[Any]:
    """Mean over the true classes of 2 TP / (2 TP + FP + FN)."""
    right, predicted, true = _thirds(sums)
    there = true > 0
    return np.asarray((2 * right / np.maximum(predicted + true, 1) * there).sum(1) / np.maximum(there.sum(1), 1))


def _mcc(sums: NDArray[Any]) -> NDArray[Any]:
    right, predicted, true = _thirds(sums)
    n = true.sum(1)
    spread = np.sqrt((n * n - (predicted * predicted).sum(1)) * (n * n - (true * true).sum(1)))
    covariance = right.sum(1) * n - (predicted * true).sum(1)
    return np.where(spread > 0, covariance / np.maximum(spread, 1e-300), 0.0)


class Labels(Evaluation):
    """Choice among the labels of the data."""

    table: ClassVar[Table] = {
        "accuracy": Metric(SumMetric(_counts, _accuracy), rank=3),
        "macro_f1": Metric(SumMetric(_counts, _macro_f1), per_example="accuracy"),
        "mcc": Metric(SumMetric(_counts, _mcc), scale="-1 to 1", per_example="accuracy"),
    }

    def applies(self, context: EvalContext) -> bool:
        if context.task.model_class == "classification":
            return not context.task.numeric
        return context.task.name == "chat" and labelled(context)

    def measure(self, context: EvalContext) -> list[Record]:
        chosen = [""] * len(context.examples)
        if context.task.model_class == "classification":
            names: tuple[str, ...] = context.task.labels  # type: ignore[attr-defined]
            for owner, logits in context.logits():
                chosen[owner] = names[int(logits.argmax())]
        else:
            chosen = most_likely(context)
        return [{"label": each.label, "chosen": label} for each, label in zip(context.examples, chosen, strict=True)]


def most_likely(context: EvalContext) -> list[str]:
    """For each example the most likely label of `context.labels`; the first of equally likely ones."""

    last = dict(zip(context.owner, context.rows, strict=True))  # a dialogue is judged by its last answer
    numbers = sorted(last)
    split = [split_answer(last[number]) for number in numbers]
    prompts = [prompt for prompt, _ in split]
    common = {label: _tail(context, numbers[0], label) for label in context.labels}
    # The tokens of each label as the answer; None where they are those of the first example, as the own label shows.
    tails: list[list[list[int]] | None] = [None] * len(numbers)
    for place, number in enumerate(numbers):
        if split[place][1] != common.get(context.examples[number].label or ""):
            tails[place] = [_tail(context, number, label) for label in context.labels]
    trial = sorted(range(len(numbers)), key=lambda place: -len(prompts[place]))[:TRIAL_ROWS]
    pairs = [prompts[i] for i in trial], [tails[i] or list(common.values()) for i in trial]
    (size,) = context.computed("trial", [pairs], [1], "")
    tokens = context.settings.batch_tokens
    if size:
        tokens = min(tokens, max(1, CACHE_BYTES // (size * len(context.labels))))
    items, lengths = list(zip(prompts, tails, strict=True)), [len(prompt) for prompt in prompts]
    more = {"common": list(common.values()), "shared": bool(size)}
    chosen = [""] * len(context.examples)
    for number, place in zip(
        numbers, context.computed("labels", items, lengths, "prompts with all labels", tokens, **more), strict=True
    ):
        chosen[number] = context.labels[place]
    return chosen


def choices_of(
    context: EvalContext,
    items: Sequence[tuple[list[int], list[list[int]] | None]],
    common: list[list[int]],
    *,
    shared: bool,
) -> list[int]:
    """The place of the most likely label after each prompt of a batch."""
    way = sums_of_shared if shared else sums_of_rows
    found = way(context, [prompt for prompt, _ in items], [own or common for _, own in items])
    return [sums.index(min(sums)) for sums in found]


WORK["labels"] = choices_of


def _tail(context: EvalContext, number: int, label: str) -> list[int]:
    """The learned tokens of the last turn, if its content were this label."""
    example = context.examples[number]
    last = replace(example.messages[-1], content=label, tool_calls="")
    return split_answer(context.template.encode([*example.messages[:-1], last], example.tools))[1]


def tried(context: EvalContext, batch: Sequence[Any]) -> list[int]:
    """As `bytes_of_shared`, for each (prompts, tails) of a batch."""
    return [bytes_of_shared(context, *each) for each in batch]


def bytes_of_shared(context: EvalContext, prompts: Sequence[list[int]], tails: Sequence[list[list[int]]]) -> int:
    """Bytes of KV cache for a token of a prompt; 0 if the model cannot continue one prompt in many ways."""
    some = [labels[:TRIAL_ROWS] for labels in tails]
    sizes: list[int] = []
    try:
        shared = sums_of_shared(context, prompts, some, sizes)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return 0  # whatever the model or the tuner raised: rows for each pair always work
    plain = sums_of_rows(context, prompts, some)
    pairs = [pair for one, other in zip(shared, plain, strict=True) for pair in zip(one, other, strict=True)]
    near = all(abs(a - b) < NEAR * max(1.0, abs(b) / 10) for a, b in pairs)
    return max(1, sizes[0]) if near else 0


WORK["trial"] = tried


def sums_of_rows(context: EvalContext, prompts: Sequence[list[int]], tails: Sequence[list[list[int]]]) -> "Sums":
    """-log p of each label after each prompt, by a row for each pair."""
    pairs = [(i, j) for i, labels in enumerate(tails) for j in range(len(labels))]
    rows = [Row(prompts[i] + tails[i][j], [IGNORED] * len(prompts[i]) + tails[i][j], "") for i, j in pairs]
    sums = [[0.0] * len(labels) for labels in tails]
    for numbers, batch in context.batches(rows):
        for n, total in zip(numbers, context.task.losses(context.model, batch)[0].tolist(), strict=True):
            sums[pairs[n][0]][pairs[n][1]] = total
    return sums


def sums_of_shared(
    context: EvalContext, prompts: Sequence[list[int]], tails: Sequence[list[list[int]]], sizes: list[int] | None = None
) -> "Sums":
    """The same, with each prompt read once. The bytes of KV cache for a token are appended to `sizes`."""
    import torch

    from luthier.kernels.cross_entropy import without_head

    model, where = context.model, context.device
    width = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts], device=where)  # [B, P]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=where)
    mask = (torch.arange(width, device=where) < lengths[:, None]).long()
    with without_head(model) as head:
        if head is None:
            raise NotImplementedError("logits that are not a linear head's")
        out = model(input_ids=ids, attention_mask=mask, use_cache=True)
        hidden = out.logits[torch.arange(len(prompts), device=where), lengths - 1]  # [B, H]
        logits = torch.nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias)
        first = torch.log_softmax(logits.float(), -1)  # [B, vocab]
        cache = out.past_key_values
        size = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
        if sizes is not None:
            sizes.append(size // (len(prompts) * width))
        heads = ids.new_tensor([[tail[0] for tail in labels] for labels in tails])  # [B, L]
        sums: Sums = (-first.gather(1, heads)).tolist()
        step = max(1, CACHE_BYTES // max(1, size))
        for start in range(0, len(tails[0]), step):
            part = [labels[start : start + step] for labels in tails]
            for i, more in enumerate(_after(model, head, copy.deepcopy(cache), mask, lengths, part)):
                for j, value in enumerate(more):
                    sums[i][start + j] += value
    return sums


def _after(
    model: Any, head: Any, cache: Any, mask: "Tensor", lengths: "Tensor", tails: list[list[list[int]]]
) -> "Sums":
    """-log p of the tokens of each label after its first one; the cache is consumed."""
    import torch

    from luthier.kernels.cross_entropy import linear_cross_entropy

    each, width = len(tails[0]), max(len(tail) for labels in tails for tail in labels) - 1
    if not width:
        return [[0.0] * each for _ in tails]
    flat = [tail for labels in tails for tail in labels]  # [B x L]
    pads = [width + 1 - len(tail) for tail in flat]
    ids = mask.new_tensor([tail[:-1] + [0] * pad for tail, pad in zip(flat, pads, strict=True)])
    targets = mask.new_tensor([tail[1:] + [IGNORED] * pad for tail, pad in zip(flat, pads, strict=True)])
    kept = targets != IGNORED
    cache.batch_repeat_interleave(each)
    whole = torch.cat([mask.repeat_interleave(each, 0), kept.long()], 1)
    places = lengths.repeat_interleave(each)[:, None] + torch.arange(width, device=mask.device)
    inputs = {"input_ids": ids, "attention_mask": whole, "position_ids": places}
    hidden = model(**inputs, past_key_values=cache, use_cache=True).logits  # [B x L, A, H]
    losses = linear_cross_entropy(hidden[kept], head, targets[kept])
    sums = losses.new_zeros(len(flat)).index_add(0, kept.nonzero()[:, 0], losses)
    return sums.view(-1, each).tolist()
