"""BLEU and chrF of the generated answers, as sacrebleu computes them over the whole set, 0 to 100.

BLEU is the geometric mean of the precisions of one to four words in a row, times the brevity penalty; chrF the F2 of
one to six characters in a row. Both are made from counts summed over all answers, so a record keeps its counts. With
several references BLEU takes the n-grams of all of them and the nearest length, chrF the best one. Papineni et al.
2002, aclanthology.org/P02-1040; Popović 2015, aclanthology.org/W15-3049; Post 2018, arXiv 1804.08771.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.metrics.base import Evaluation, Metric, SumMetric, Table
from luthier.evaluation.records.context import EvalContext, Record, answered, bleu_splitter, open_answers, references_of

COUNTS = {"bleu": 10, "chrf": 18}
"""Numbers that sacrebleu sums: lengths, and hits and n-grams of four orders; three for each of six orders."""


def _metric(name: str) -> SumMetric:
    key, nothing = f"{name}_counts", [0] * COUNTS[name]

    def terms(records: Sequence[Record]) -> NDArray[Any]:
        return np.array([r.get(key, nothing) for r in records], dtype=float).reshape(-1, len(nothing))

    def value(sums: NDArray[Any]) -> NDArray[Any]:
        import sacrebleu

        scorer: Any = sacrebleu.BLEU() if name == "bleu" else sacrebleu.CHRF()
        return np.array([scorer._compute_score_from_stats(row).score for row in sums.round().astype(int).tolist()])

    return SumMetric(terms, value, key)


class Bleu(Evaluation):
    """Overlap of n-grams with the references, over the whole set."""

    table: ClassVar[Table] = {name: Metric(_metric(name), scale="0 to 100") for name in COUNTS}
    package: ClassVar[str] = "sacrebleu"

    def applies(self, context: EvalContext) -> bool:
        return open_answers(context)

    def measure(self, context: EvalContext) -> list[Record]:
        from sacrebleu import BLEU, CHRF

        answers = answered(context)
        tokenize = bleu_splitter(text for record in answers if record for text in references_of(record))
        scorers: dict[str, Any] = {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF()}
        made: list[Record] = [{} for _ in answers]
        for counts, record in zip(made, answers, strict=True):
            for name, scorer in scorers.items() if record else ():
                references = [[text] for text in references_of(record)]
                counts[f"{name}_counts"] = list(scorer._extract_corpus_statistics([record["said"]], references)[0])
        return made
