"""Exact match: the model answers held-out prompts in its own words, greedily, and must say what the data says.

Upper and lower case, white space at the edges and a final full stop do not count. Where the held-out rows have one
prompt several times, any of their answers is right.
"""

from __future__ import annotations

from luthier.evaluation.metrics.base import Evaluation, MetricFunction, mean_of
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.records.generate import answered, asks, references_of


class ExactMatch(Evaluation):
    """Share of generated answers that equal the data's."""

    def applies(self, subject: EvalContext) -> bool:
        return asks(subject)

    def measure(self, subject: EvalContext) -> list[Record]:
        return [{**record, "exact": exact(record)} if record else {} for record in answered(subject)]

    def metrics(self) -> dict[str, MetricFunction]:
        return {"exact_match": mean_of("exact")}


def exact(record: Record) -> int:
    """Is what was said one of the references? 1 or 0."""
    return int(plain(record["said"]) in map(plain, references_of(record)))


def plain(text: str) -> str:
    """Text without case, outer white space and final stop."""
    return text.strip().casefold().rstrip(".。").strip()
