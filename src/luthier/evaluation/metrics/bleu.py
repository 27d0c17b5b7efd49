"""BLEU and chrF of the generated answers, as sacrebleu computes them over the whole set, 0 to 100.

BLEU is the geometric mean of the precisions of one to four words in a row, times the brevity penalty; chrF the F2 of
one to six characters in a row. Both are made from counts summed over all answers, not from a mean of scores, so a
record keeps its counts and a resample sums those. The tokenizer of BLEU follows from the references (`zh` for Chinese,
`char` for Japanese, else `13a`); with several references BLEU takes the n-grams of all of them and the nearest length,
chrF the best one. Papineni et al. 2002, aclanthology.org/P02-1040; Popović 2015, aclanthology.org/W15-3049; Post 2018,
arXiv 1804.08771.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from luthier.core.errors import install_anywhere
from luthier.evaluation.metrics.base import Evaluation, MetricFunction, SumMetric
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.records.generate import answered, asks, open_answers, references_of
from luthier.evaluation.records.words import bleu_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

COUNTS = {"bleu": 10, "chrf": 18}
"""Numbers that sacrebleu sums: lengths, and hits and n-grams of four orders; three for each of six orders."""


class Bleu(Evaluation):
    """Overlap of n-grams with the references, over the whole set."""

    def applies(self, subject: EvalContext) -> bool:
        return asks(subject) and open_answers(subject) and find_spec("sacrebleu") is not None

    def lacks(self, subject: EvalContext) -> str:
        missing = asks(subject) and open_answers(subject) and find_spec("sacrebleu") is None
        return (
            f"BLEU and chrF are not measured: sacrebleu is not installed ({install_anywhere('scores')})"
            if missing
            else ""
        )

    def measure(self, subject: EvalContext) -> list[Record]:
        from sacrebleu import BLEU, CHRF

        answers = answered(subject)
        tokenize = bleu_tokenizer(text for record in answers if record for text in references_of(record))
        scorers: dict[str, Any] = {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF()}
        made: list[Record] = []
        for record in answers:
            counts = {}
            for name, scorer in scorers.items() if record else ():
                references = [[text] for text in references_of(record)]
                counts[f"{name}_counts"] = list(scorer._extract_corpus_statistics([record["said"]], references)[0])
            made.append(counts)
        return made

    def metrics(self) -> dict[str, MetricFunction]:
        return {name: SumMetric(_counts(name), _score(name)) for name in COUNTS}


def _counts(name: str) -> Any:
    import numpy as np

    nothing = [0] * COUNTS[name]

    def terms(records: Sequence[Record]) -> NDArray[Any]:
        return np.array([r.get(f"{name}_counts", nothing) for r in records], dtype=float).reshape(-1, len(nothing))

    return terms


def _score(name: str) -> Any:
    import numpy as np

    def value(sums: NDArray[Any]) -> NDArray[Any]:
        from sacrebleu import BLEU, CHRF

        scorer: Any = BLEU() if name == "bleu" else CHRF()
        rows = sums.round().astype(int).tolist()
        return np.array([scorer._compute_score_from_stats(row).score for row in rows])

    return value
