"""Which examples became better or worse by training, as text side by side.

By the score that ranks the run, for each example on its own: right or wrong, the ROUGE-L of its answer, its loss. Where
that score is the same before and after, the example counts as the same, whatever its loss did; among equal changes
those with the larger change of loss come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluation.metrics.base import Evaluation
from luthier.evaluation.records.context import Record
from luthier.evaluation.scores import EACH, metrics_of

MOST_TEXT = 2000
"""Characters of a text that are kept in result.json."""


def contrast(
    predictions: Sequence[Mapping[str, Any]], headline: str, chosen: Sequence[Evaluation], most: int
) -> dict[str, Any]:
    """{by, better, worse, same, regressions, gains}; a prediction has where, text, answer, base and tuned."""
    metrics = metrics_of(chosen)
    by = EACH.get(headline, headline)
    if by not in metrics:
        by = next((name for name in ("accuracy", "loss") if name in metrics), next(iter(metrics)))
    metric, higher = metrics[by]
    sign = 1 if higher else -1
    found = []
    for number, row in enumerate(predictions):
        base, tuned = row["base"], row["tuned"]
        if not base or not tuned or ("said" in tuned) != ("said" in base) or not _has(by, tuned):
            continue
        before, after = metric([base]), metric([tuned])
        found.append((sign * (after - before), _loss(base) - _loss(tuned), number, before, after))
    gains = sorted((each for each in found if each[0] > 0), reverse=True)
    regressions = sorted(each for each in found if each[0] < 0)
    return {
        "by": by,
        "better": len(gains),
        "worse": len(regressions),
        "same": len(found) - len(gains) - len(regressions),
        "regressions": [_shown(predictions[number], before, after) for *_, number, before, after in regressions[:most]],
        "gains": [_shown(predictions[number], before, after) for *_, number, before, after in gains[:most]],
    }


NEEDS = {
    "pass_rate": "passed",
    "judge": "judge",
    "exact_match": "exact",
    "bleu": "bleu_counts",
    "chrf": "chrf_counts",
    "rouge_1": "rouge_1",
    "rouge_2": "rouge_2",
    "rouge_l": "rouge_l",
}
"""Metric -> what a record has that it was measured on."""


def _has(by: str, record: Record) -> bool:
    return by not in NEEDS or NEEDS[by] in record


def _loss(record: Record) -> float:
    return float(record.get("loss_sum", 0.0) / max(1, record.get("targets", 1)))


def words_of(record: Mapping[str, Any]) -> str:
    """What a model says on an example: its label, its number or its answer; nothing for plain text.

    Where it chose a label and was asked for an answer too, both, if they differ.
    """
    if "guess" in record:
        return "no number" if record["guess"] is None else f"{record['guess']:.3f}"
    said, chosen = str(record.get("said", "")), str(record.get("chosen", ""))
    if not chosen or not said or said == chosen:
        return chosen or said
    return f"{chosen} (in its own words: {said})"


def _shown(row: Mapping[str, Any], before: float, after: float) -> dict[str, Any]:
    texts = {
        "text": row["text"],
        "answer": row["answer"],
        "base": words_of(row["base"]),
        "tuned": words_of(row["tuned"]),
    }
    short = {key: text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ..." for key, text in texts.items()}
    return {"where": row["where"], **short, "base_score": before, "tuned_score": after}
