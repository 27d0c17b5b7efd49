"""Exact match: the model answers held-out prompts with free text, greedily, and must write what the data has.

Case, white space at the edges and a final full stop do not count. If the held-out rows have one prompt several times,
any of their answers is right.
"""

from typing import ClassVar

from luthier.evaluation.metrics.base import Evaluation, Metric, Table, mean_of
from luthier.evaluation.records.context import EvalContext, Record, answered, asks, open_answers, references_of


class ExactMatch(Evaluation):
    """Share of generated answers that equal the data's."""

    table: ClassVar[Table] = {"exact_match": Metric(mean_of("exact"), rank=5)}

    def applies(self, context: EvalContext) -> bool:
        return asks(context)

    def may_rank(self, context: EvalContext) -> bool:
        return not open_answers(context)  # a long answer that differs in a word may be as good

    def measure(self, context: EvalContext) -> list[Record]:
        made: list[Record] = []
        for record in answered(context):
            right = [normalized_answer(text) for text in references_of(record)] if record else []
            made.append({**record, "exact": int(normalized_answer(record["said"]) in right)} if record else {})
        return made


def normalized_answer(text: str) -> str:
    """Text without case, outer white space and final stop."""
    return text.strip().casefold().rstrip(".。").strip()
