"""Accuracy, macro-F1 and Matthews correlation for rows that each have one of a set of labels.

A classification head picks its best class. A causal model picks the label that gets the highest likelihood as the
answer, the sum of log p over its tokens, including the end token: so the untouched base is judged on what it knows, not
on whether it guesses the wording. The labels to choose from are all those of the data, including training rows.

Each prompt is read once for all labels (see records/reading.py): P + L A tokens for a prompt of P and L labels of A,
instead of L (P + A). A model that cannot be read like that gets a row for each pair of prompt and label.

Macro-F1 is the plain mean of the F1 of the classes that occur, so rare classes count as much. Matthews correlation
(for two classes Matthews 1975, for more Gorodkin 2004) is 0 for guessing, whatever the shares of the classes, and 1 for
no mistake: (c n - sum_k p_k t_k) / sqrt((n^2 - sum_k p_k^2) (n^2 - sum_k t_k^2)) with c right of n, and p_k and t_k how
often class k was predicted and true; 0 if only one class was predicted, or exists.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.metrics.base import Evaluation, Metric, SumMetric, Table
from luthier.evaluation.records.context import (
    EvalContext,
    Record,
    labelled,
    lengths_of,
    read_once,
    split_answer,
    tails_of_labels,
)
from luthier.rendering.row import IGNORED, Row


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
    read = read_once(context)
    sums = read.labels if read else sums_of_rows(context)
    return [context.labels[sums[number].index(min(sums[number]))] for number in range(len(context.examples))]


def sums_of_rows(context: EvalContext) -> dict[int, list[float]]:
    """-log p of each label for each example, by a row for each pair."""
    last = dict(zip(context.owner, context.rows, strict=True))
    rows, places = [], []
    for number, tails in tails_of_labels(context).items():
        prompt, _ = split_answer(last[number])
        rows += [Row(prompt + tail, [IGNORED] * len(prompt) + tail, "") for tail in tails]
        places += [number] * len(tails)
    sums: dict[int, list[float]] = {}
    found = context.computed("losses", rows, lengths_of(rows), "prompts with all labels")
    for number, (total, _) in zip(places, found, strict=True):
        sums.setdefault(number, []).append(total)
    return sums
