"""Accuracy, macro-F1 and Matthews' correlation where every row has one of a set of labels.

A classification head names its best class. A causal model names the label whose words, put as the answer, get the
highest likelihood: so the untouched base is judged on what it knows, not on whether it guesses the wording. The labels
to choose from are all those of the data, training rows included.

Macro-F1 is the plain mean of the F1 of the classes that occur, so rare classes count as much. Matthews' correlation
(for two classes Matthews 1975, for more Gorodkin 2004) is 0 for guessing, whatever the shares of the classes, and 1 for
no mistake: (c n - sum_k p_k t_k) / sqrt((n^2 - sum_k p_k^2) (n^2 - sum_k t_k^2)) with c right of n, and p_k and t_k how
often class k was said and true; 0 where only one class was said, or is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.evaluation.metrics.base import Evaluation, MetricFunction, SumMetric
from luthier.evaluation.records.choice import most_likely
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.records.generate import labelled

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Labels(Evaluation):
    """Choice among the labels of the data."""

    def applies(self, subject: EvalContext) -> bool:
        if subject.task.model_class == "classification":
            return not subject.task.numeric
        return subject.task.name == "chat" and labelled(subject)

    def measure(self, subject: EvalContext) -> list[Record]:
        chosen = _by_head(subject) if subject.task.model_class == "classification" else most_likely(subject)
        return [
            {"label": example.label, "chosen": label} for example, label in zip(subject.examples, chosen, strict=True)
        ]

    def metrics(self) -> dict[str, MetricFunction]:
        return {"accuracy": accuracy, "macro_f1": macro_f1, "mcc": mcc}


def _by_head(subject: EvalContext) -> list[str]:
    import torch

    names: tuple[str, ...] = subject.task.labels  # type: ignore[attr-defined]
    chosen = [""] * len(subject.examples)
    with torch.inference_mode():
        for numbers, batch in subject.batches(subject.rows, "held-out rows"):
            logits = subject.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            for number, best in zip(numbers, logits.argmax(-1).tolist(), strict=True):
                chosen[subject.owner[number]] = names[best]
    return chosen


def _counts(records: Sequence[Record]) -> NDArray[Any]:
    """[records, 3 classes]: is class k right here, was it said, is it true?"""
    import numpy as np

    names = sorted({str(r[key]) for r in records for key in ("label", "chosen")})
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(records), 3 * len(names)))
    for row, record in zip(counts, records, strict=True):
        true, said = place[str(record["label"])], place[str(record["chosen"])]
        row[true] = true == said
        row[len(names) + said] = row[2 * len(names) + true] = 1
    return counts


def _thirds(sums: NDArray[Any]) -> Any:
    return sums.reshape(len(sums), 3, -1).transpose(1, 0, 2)  # hit, said, true: [draws, classes] each


def _accuracy(sums: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    hit, _, true = _thirds(sums)
    return np.asarray(hit.sum(1) / np.maximum(true.sum(1), 1))


def _macro_f1(sums: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    hit, said, true = _thirds(sums)
    there = true > 0
    return np.asarray((2 * hit / np.maximum(said + true, 1) * there).sum(1) / np.maximum(there.sum(1), 1))


def _mcc(sums: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    hit, said, true = _thirds(sums)
    n = true.sum(1)
    spread = np.sqrt((n * n - (said * said).sum(1)) * (n * n - (true * true).sum(1)))
    return np.where(spread > 0, (hit.sum(1) * n - (said * true).sum(1)) / np.maximum(spread, 1e-300), 0.0)


accuracy = SumMetric(_counts, _accuracy)
"""Share of records whose chosen label is the true one."""
macro_f1 = SumMetric(_counts, _macro_f1)
"""Mean over the true classes of 2 TP / (2 TP + FP + FN)."""
mcc = SumMetric(_counts, _mcc)
"""Matthews' correlation coefficient."""
