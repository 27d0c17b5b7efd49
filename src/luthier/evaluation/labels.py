"""Accuracy and macro-F1 where every row has one of a few labels.

A classification head names its best class. A causal model names the label whose words, put as the
answer, get the highest likelihood: so the untouched base is judged on what it knows, not on whether it
guesses the wording. Macro-F1 is the plain mean of the classes' F1, so rare classes count as much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from luthier.data.template import IGNORED
from luthier.evaluation.base import Evaluation, MetricFunction, Record, Subject
from luthier.tasks.base import Row

MOST_LABELS = 20
"""A causal model is asked once per label and row; with more labels that costs too much."""


class Labels(Evaluation):
    """Choice among the labels of the data."""

    def applies(self, subject: Subject) -> bool:
        if subject.task.model_class == "classification":
            return True
        labels = {example.label for example in subject.examples}
        return subject.task.name == "chat" and None not in labels and 1 < len(labels) <= MOST_LABELS

    def measure(self, subject: Subject) -> list[Record]:
        chosen = _by_head(subject) if subject.task.model_class == "classification" else _by_likelihood(subject)
        return [
            {"label": example.label, "chosen": label} for example, label in zip(subject.examples, chosen, strict=True)
        ]

    def metrics(self) -> dict[str, MetricFunction]:
        return {"accuracy": accuracy, "macro_f1": macro_f1}


def accuracy(records: Sequence[Record]) -> float:
    """Share of records whose chosen label is the true one."""
    right: list[bool] = [record["chosen"] == record["label"] for record in records]
    return sum(right) / max(1, len(right))


def macro_f1(records: Sequence[Record]) -> float:
    """Mean over the true classes of 2 TP / (2 TP + FP + FN)."""
    true = Counter(record["label"] for record in records)
    said = Counter(record["chosen"] for record in records)
    hit = Counter(record["label"] for record in records if record["chosen"] == record["label"])
    each: list[float] = [2 * hit[name] / (said[name] + true[name]) for name in true]
    return sum(each) / max(1, len(each))


def _by_head(subject: Subject) -> list[str]:
    import torch

    names: tuple[str, ...] = subject.task.labels  # type: ignore[attr-defined]
    chosen = [""] * len(subject.examples)
    with torch.inference_mode():
        for numbers, batch in subject.batches(subject.rows):
            logits = subject.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            for number, best in zip(numbers, logits.argmax(-1).tolist(), strict=True):
                chosen[subject.owner[number]] = names[best]
    return chosen


def _by_likelihood(subject: Subject) -> list[str]:
    """Each label's words in the place of the answer, behind the very prompt tokens of the row."""
    import torch

    labels = sorted({example.label for example in subject.examples if example.label is not None})
    candidates: list[Row] = []
    for row, owner in zip(subject.rows, subject.owner, strict=True):
        example = subject.examples[owner]
        for label in labels:
            said = replace(example.messages[-1], content=label, tool_calls="")
            answer = subject.template.encode([*example.messages[:-1], said], example.tools)
            learned = [token for token in answer.labels if token != IGNORED]
            prompt = row.ids[: answer_start(row)]
            candidates.append(Row(prompt + learned, [IGNORED] * len(prompt) + learned, row.where))
    sums = [0.0] * len(candidates)
    with torch.inference_mode():
        for numbers, batch in subject.batches(candidates):
            for number, total in zip(numbers, subject.task.losses(subject.model, batch)[0].tolist(), strict=True):
                sums[number] = total
    best = [sums[i : i + len(labels)] for i in range(0, len(sums), len(labels))]
    return [labels[scores.index(min(scores))] for scores in best]


def answer_start(row: Row) -> int:
    """Place of the first token of the last learned stretch: everything before it is the prompt."""
    place = max(i for i, label in enumerate(row.labels) if label != IGNORED)
    while place > 0 and row.labels[place - 1] != IGNORED:
        place -= 1
    return place
