"""Which examples got better or worse by training, as text side by side.

Each example is scored by the run's primary metric, or by the one that stands for it on a single example. Among equal
changes of that score those with the larger change of loss come first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluation.metrics.base import Evaluation, metrics_of
from luthier.evaluation.records.context import Record

MOST_TEXT = 2000
"""Characters of a text that are kept in result.json."""


def contrast(
    predictions: Sequence[Mapping[str, Any]], primary: str, chosen: Sequence[Evaluation], most: int
) -> dict[str, Any]:
    """{by, better, worse, same, regressions, gains}; a prediction has where, text, answer, base and tuned."""
    metrics = metrics_of(chosen)
    stands_for = metrics[primary].per_example if primary in metrics else ""
    by = next(name for name in (stands_for or primary, "accuracy", "loss", *metrics) if name in metrics)
    metric, sign = metrics[by].function, 1 if metrics[by].higher else -1
    key = getattr(metric, "key", "")
    found = []
    for number, row in enumerate(predictions):
        base, tuned = row["base"], row["tuned"]
        if not base or not tuned or ("said" in tuned) != ("said" in base) or (key and key not in tuned):
            continue
        before, after = metric([base]), metric([tuned])
        found.append((sign * (after - before), _loss(base) - _loss(tuned), number, before, after))
    gains = sorted((each for each in found if each[0] > 0), reverse=True)
    regressions = sorted(each for each in found if each[0] < 0)
    same = len(found) - len(gains) - len(regressions)
    result: dict[str, Any] = {"by": by, "better": len(gains), "worse": len(regressions), "same": same}
    for side, examples in (("regressions", regressions), ("gains", gains)):
        result[side] = [_shown(predictions[number], before, after) for *_, number, before, after in examples[:most]]
    return result


def _loss(record: Record) -> float:
    return float(record.get("loss_sum", 0.0) / max(1, record.get("targets", 1)))


def words_of(record: Mapping[str, Any]) -> str:
    """A model's output on an example: its number, or its label and its answer if they differ; "" for plain text."""
    if "guess" in record:
        return "NaN" if record["guess"] is None else f"{record['guess']:.3f}"
    generated, chosen = str(record.get("said", "")), str(record.get("chosen", ""))
    if not chosen or not generated or generated == chosen:
        return chosen or generated
    return f"{chosen} (generated: {generated})"


def _shown(row: Mapping[str, Any], before: float, after: float) -> dict[str, Any]:
    texts = {"text": row["text"], "answer": row["answer"]} | {side: words_of(row[side]) for side in ("base", "tuned")}
    short = {key: text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ..." for key, text in texts.items()}
    return {"where": row["where"], **short, "base_score": before, "tuned_score": after}
