"""ROUGE: which words and word pairs of the reference the generated answer has, and in which order.

F1 of unigrams (ROUGE-1), bigrams (ROUGE-2) and the longest common subsequence (ROUGE-L, over the whole text), by
Google's rouge-score without stemming; the mean over the answers. With several references the best one counts, for
each score its own. Chinese characters are words (see records.context.words). Lin 2004, aclanthology.org/W04-1013.
"""

from types import SimpleNamespace
from typing import ClassVar

from luthier.evaluation.metrics.base import Evaluation, Metric, Table, mean_of
from luthier.evaluation.records.context import EvalContext, Record, answered, open_answers, references_of, words

NAMES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
"""Our name -> rouge-score's."""


class Rouge(Evaluation):
    """Overlap of words with the reference."""

    table: ClassVar[Table] = {name: Metric(mean_of(name), rank=4 if name == "rouge_l" else None) for name in NAMES}
    package: ClassVar[str] = "rouge_score"

    def applies(self, context: EvalContext) -> bool:
        return open_answers(context)

    def measure(self, context: EvalContext) -> list[Record]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(NAMES.values()), tokenizer=SimpleNamespace(tokenize=words))
        made: list[Record] = []
        for record in answered(context):
            each = [scorer.score(reference, record["said"]) for reference in references_of(record)] if record else []
            made.append({name: max(score[theirs].fmeasure for score in each) for name, theirs in NAMES.items() if each})
        return made
