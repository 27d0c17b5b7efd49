"""Scores with 95 % confidence intervals, base against tuned."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from luthier.evaluation.base import EVALUATIONS, Evaluation, MetricFunction, Record, Subject

RESAMPLES = 1000


def evaluations(subject: Subject) -> list[Evaluation]:
    """Every evaluation that fits the subject's task and rows."""
    known = [EVALUATIONS.get(name)() for name in EVALUATIONS.names()]
    return [evaluation for evaluation in known if evaluation.applies(subject)]


def headline(scores: dict[str, dict[str, Any]]) -> str:
    """The one score that a comparison ranks by."""
    return next((name for name in ("accuracy", "exact_match", "loss") if name in scores), "")


def measure(subject: Subject) -> list[Record]:
    """One record per held-out example with what all fitting evaluations measured."""
    records: list[Record] = [{} for _ in subject.examples]
    subject.model.eval()
    for evaluation in evaluations(subject):
        for record, new in zip(records, evaluation.measure(subject), strict=True):
            record.update(new)
    return records


def scores(records: Sequence[Record], chosen: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """{metric: {value, low, high, higher_is_better}}; low to high is the bootstrap's 95 % interval over examples."""
    result = {}
    for name, (function, higher) in _metrics(chosen).items():
        low, high = _interval([function(sample) for sample in _resamples(records)])
        result[name] = {"value": function(records), "low": low, "high": high, "higher_is_better": higher}
    return result


def differences(
    base: Sequence[Record], tuned: Sequence[Record], chosen: Sequence[Evaluation]
) -> dict[str, dict[str, Any]]:
    """Tuned minus base per metric, with the paired bootstrap's 95 % interval: both on the same resample."""
    result = {}
    pairs = list(zip(base, tuned, strict=True))
    for name, (function, _) in _metrics(chosen).items():
        drawn = [function([t for _, t in sample]) - function([b for b, _ in sample]) for sample in _resamples(pairs)]
        low, high = _interval(drawn)
        result[name] = {"value": function(tuned) - function(base), "low": low, "high": high}
    return result


def _metrics(chosen: Sequence[Evaluation]) -> dict[str, tuple[MetricFunction, bool]]:
    return {name: (function, e.higher_is_better) for e in chosen for name, function in e.metrics().items()}


def _resamples(items: Sequence[Any]) -> list[list[Any]]:
    """The same resamples for every call with as many items, so that base and tuned are drawn alike."""
    dice = random.Random(0)
    # Thousands of rows have narrow intervals already: fewer resamples give the same figures.
    count = RESAMPLES if len(items) <= 500 else max(100, RESAMPLES * 500 // len(items))
    return [dice.choices(items, k=len(items)) for _ in range(count)]


def _interval(drawn: list[float]) -> tuple[float, float]:
    drawn = sorted(drawn)
    return drawn[round(0.025 * (len(drawn) - 1))], drawn[round(0.975 * (len(drawn) - 1))]
