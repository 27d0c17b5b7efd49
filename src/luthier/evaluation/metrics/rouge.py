"""ROUGE: which words and word pairs of the reference the generated answer has, and in which order.

F1 of unigrams (ROUGE-1), bigrams (ROUGE-2) and the longest common subsequence (ROUGE-L, over the whole text), by
Google's rouge-score without stemming; the mean over the answers. With several references the best one counts, for
each score its own. Chinese characters are words (see words.py). Lin 2004, aclanthology.org/W04-1013.
"""

from __future__ import annotations

from importlib.util import find_spec

from luthier.core.errors import install_anywhere
from luthier.evaluation.metrics.base import Evaluation, MetricFunction, mean_of
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.records.generate import answered, asks, open_answers, references_of
from luthier.evaluation.records.words import words

NAMES = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
"""rouge-score's name -> ours."""


class Rouge(Evaluation):
    """Overlap of words with the reference."""

    def applies(self, subject: EvalContext) -> bool:
        return asks(subject) and open_answers(subject) and find_spec("rouge_score") is not None

    def lacks(self, subject: EvalContext) -> str:
        missing = asks(subject) and open_answers(subject) and find_spec("rouge_score") is None
        return f"ROUGE is not measured: rouge-score is not installed ({install_anywhere('scores')})" if missing else ""

    def measure(self, subject: EvalContext) -> list[Record]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(NAMES), tokenizer=_Words())
        made: list[Record] = []
        for record in answered(subject):
            if not record:
                made.append({})
                continue
            each = [scorer.score(reference, record["said"]) for reference in references_of(record)]
            made.append({name: max(score[theirs].fmeasure for score in each) for theirs, name in NAMES.items()})
        return made

    def metrics(self) -> dict[str, MetricFunction]:
        return {name: mean_of(name) for name in NAMES.values()}


class _Words:
    """Our words, as rouge-score asks for them."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)
