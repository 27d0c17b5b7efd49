"""Exact match: the model answers held-out prompts in its own words, greedily, and must say what the data says.

Upper and lower case, white space at the edges and a final full stop do not count.
"""

from __future__ import annotations

from luthier.data.template import IGNORED
from luthier.evaluation.base import Evaluation, MetricFunction, Record, Subject
from luthier.evaluation.generate import generate
from luthier.evaluation.labels import answer_start


class ExactMatch(Evaluation):
    """Share of generated answers that equal the data's."""

    def applies(self, subject: Subject) -> bool:
        return subject.task.name == "chat" and subject.generate > 0

    def measure(self, subject: Subject) -> list[Record]:
        # A dialogue may have a row per answer (see Template.rows); it is asked for its last one.
        last = dict(zip(subject.owner, subject.rows, strict=True))
        rows = [last[number] for number in range(min(subject.generate, len(subject.examples)))]
        starts = [answer_start(row) for row in rows]
        longest = max(len(row.ids) - start for row, start in zip(rows, starts, strict=True))
        answers = generate(
            subject.model, subject.template, [row.ids[:start] for row, start in zip(rows, starts, strict=True)],
            max_new_tokens=min(subject.max_new_tokens, longest + 2), batch_size=subject.batch_size,
        )  # fmt: skip
        records: list[Record] = []
        for row, start, said in zip(rows, starts, answers, strict=True):
            # What was learned, not the message: a template may put more into the model's mouth (Qwen3's think block).
            learned = [label for label in row.labels[start:] if label != IGNORED]
            answer = str(subject.template.tokenizer.decode(learned, skip_special_tokens=True))
            records.append({"answer": answer, "said": said})
        count = len(rows)
        return records + [{} for _ in subject.examples[count:]]

    def metrics(self) -> dict[str, MetricFunction]:
        return {"exact_match": lambda records: _share([r for r in records if "said" in r])}


def _share(records: list[Record]) -> float:
    return sum(plain(r["said"]) == plain(r["answer"]) for r in records) / max(1, len(records))


def plain(text: str) -> str:
    """Text without case, outer white space and final stop."""
    return text.strip().casefold().rstrip(".。").strip()
