"""Accuracy, macro-F1 and Matthews correlation for rows that each have one of a set of labels.

A classification head picks its best class. A causal model picks the label whose words, put as the answer, get the
highest likelihood: so the untouched base is judged on what it knows, not on whether it guesses the wording. The labels
to choose from are all those of the data, including training rows.

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
from luthier.evaluation.records.choice import most_likely
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.records.generate import labelled


def _counts(records: Sequence[Record]) -> NDArray[Any]:
    """[records, 3 classes]: whether class k is right here, was predicted, is true."""
    names = sorted({str(r[key]) for r in records for key in ("label", "chosen")})
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(records), 3 * len(names)))
    for row, record in zip(counts, records, strict=True):
        true, predicted = place[str(record["label"])], place[str(record["chosen"])]
        row[true] = true == predicted
        row[len(names) + predicted] = row[2 * len(names) + true] = 1
    return counts


def _thirds(sums: NDArray[Any]) -> Any:
    return sums.reshape(len(sums), 3, -1).transpose(1, 0, 2)  # right, predicted, true: [draws, classes] each


def _accuracy(sums: NDArray[Any]) -> NDArray[Any]:
    right, _, true = _thirds(sums)
    return np.asarray(right.sum(1) / np.maximum(true.sum(1), 1))


def _macro_f1(sums: NDArray[Any]) -> NDArray[Any]:
    right, predicted, true = _thirds(sums)
    there = true > 0
    return np.asarray((2 * right / np.maximum(predicted + true, 1) * there).sum(1) / np.maximum(there.sum(1), 1))


def _mcc(sums: NDArray[Any]) -> NDArray[Any]:
    right, predicted, true = _thirds(sums)
    n = true.sum(1)
    spread = np.sqrt((n * n - (predicted * predicted).sum(1)) * (n * n - (true * true).sum(1)))
    covariance = right.sum(1) * n - (predicted * true).sum(1)
    return np.where(spread > 0, covariance / np.maximum(spread, 1e-300), 0.0)


accuracy = SumMetric(_counts, _accuracy)
"""Share of records whose chosen label is the true one."""
macro_f1 = SumMetric(_counts, _macro_f1)
"""Mean over the true classes of 2 TP / (2 TP + FP + FN)."""
mcc = SumMetric(_counts, _mcc)
"""Matthews correlation coefficient."""


class Labels(Evaluation):
    """Choice among the labels of the data."""

    table: ClassVar[Table] = {
        "accuracy": Metric(accuracy, rank=3),
        "macro_f1": Metric(macro_f1, per_example="accuracy"),
        "mcc": Metric(mcc, scale="-1 to 1", per_example="accuracy"),
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
