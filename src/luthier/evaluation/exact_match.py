"""Exact match: the model answers held-out prompts in its own words, greedily, and must say what the data says.

Upper and lower case, white space at the edges and a final full stop do not count.
"""

from __future__ import annotations

from luthier.evaluation.base import Evaluation, MetricFunction, Record, Subject
from luthier.evaluation.generate import generate
from luthier.evaluation.labels import answer_start


class ExactMatch(Evaluation):
    """Share of generated answers that equal the data's."""

    def applies(self, subject: Subject) -> bool:
        return subject.task.name == "chat" and subject.generate > 0

    def measure(self, subject: Subject) -> list[Record]:
        count = min(subject.generate, len(subject.rows))
        rows = subject.rows[:count]
        longest = max(len(row.ids) - answer_start(row) for row in rows)
        answers = generate(
            subject.model, subject.template, [row.ids[: answer_start(row)] for row in rows],
            max_new_tokens=min(subject.max_new_tokens, longest + 2), batch_size=subject.batch_size,
        )  # fmt: skip
        records: list[Record] = []
        for example, answer in zip(subject.examples[:count], answers, strict=True):
            records.append({"answer": example.answer, "said": answer})
        return records + [{} for _ in subject.examples[count:]]

    def metrics(self) -> dict[str, MetricFunction]:
        return {"exact_match": lambda records: _share([r for r in records if "said" in r])}


def _share(records: list[Record]) -> float:
    return sum(plain(r["said"]) == plain(r["answer"]) for r in records) / max(1, len(records))


def plain(text: str) -> str:
    """Text without case, outer white space and final stop."""
    return text.strip().casefold().rstrip(".。").strip()
