"""Scores with 95 % confidence intervals, base against tuned, and the primary metric that a comparison ranks by.

Intervals are percentiles of the bootstrap over examples (Efron 1979): held-out examples are resampled with replacement,
and the score is computed on each resample. For a difference base and tuned model share the resamples (paired), which
cancels what is hard for both. A difference whose interval contains zero is within noise.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.core.errors import InputError, did_you_mean
from luthier.evaluation.metrics.base import Evaluation, Metric, SumMetric, known_evaluations, metrics_of
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.records.settings import EvaluateConfig

RESAMPLES = 1000
FEW = 20
"""Examples below which an interval of the bootstrap is too narrow to rely on."""


def evaluations(context: EvalContext) -> list[Evaluation]:
    """Every evaluation that fits the context's task and rows and can run here."""
    return [each for each in known_evaluations() if each.applies(context) and not each.missing()]


def lacking(context: EvalContext) -> list[str]:
    """What would fit and cannot be measured here, with the fix."""
    return [each.missing() for each in known_evaluations() if each.applies(context) and each.missing()]


def check_settings(settings: EvaluateConfig) -> None:
    """Refuse, before anything is read, what cannot work for any data: an unknown metric, a missing file or key."""
    known = list(metrics_of())
    if settings.metric is not None and settings.metric not in known:
        why = f"evaluate.metric: there is no score {settings.metric!r}{did_you_mean(settings.metric, known)}"
        raise InputError(why, fix=f"one of: {', '.join(known)}")
    for each in known_evaluations():
        each.check_settings(settings)


def choose_primary(context: EvalContext, measured: Sequence[str]) -> str:
    """The primary metric among `measured`. InputError if the recipe names one that is not measured."""
    wanted = context.settings.metric
    if wanted is not None and wanted not in measured:
        why = "; ".join([f"task {context.task.name}", *lacking(context)])
        message = f"evaluate.metric: {wanted} is not measured on these rows ({why})"
        raise InputError(message, fix=f"one of: {', '.join(measured)}")
    barred = {name for each in known_evaluations() if not each.may_rank(context) for name in each.table}
    return wanted or _first(name for name in measured if name not in barred)


def primary_metric(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """The metric marked `primary_metric` (`headline` in older runs), else the one of best rank; "" without scores."""
    marked = (name for name, score in scores.items() if score.get("primary_metric") or score.get("headline"))
    return next(marked, None) or _first(scores)


def _first(names: Iterable[str]) -> str:
    ranks = {name: metric.rank for name, metric in metrics_of().items() if metric.rank is not None}
    return min(names, key=lambda name: ranks.get(name, len(ranks)), default="")


def measure(context: EvalContext) -> list[Record]:
    """One record per held-out example, with the measurements of all fitting evaluations."""
    records: list[Record] = [{} for _ in context.examples]
    context.model.eval()
    for evaluation in evaluations(context):
        for record, new in zip(records, evaluation.measure(context), strict=True):
            record.update(new)
    return records


def scores(records: Sequence[Record], chosen: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """{metric: {value, low, high, higher_is_better}}; low to high is the bootstrap's 95 % interval over examples."""
    result = {}
    for name, metric in metrics_of(chosen).items():
        low, high = _interval(_resampled([records], metric)[0])
        value = metric.function(records)
        result[name] = {"value": value, "low": low, "high": high, "higher_is_better": metric.higher}
    return result


def differences(
    base: Sequence[Record], tuned: Sequence[Record], chosen: Sequence[Evaluation]
) -> dict[str, dict[str, Any]]:
    """{metric: {value, low, high, verdict}}: tuned minus base with the paired bootstrap's 95 % interval."""
    result = {}
    for name, metric in metrics_of(chosen).items():
        before, after = _resampled([base, tuned], metric)
        change = metric.function(tuned) - metric.function(base)
        result[name] = difference(change, after - before, higher=metric.higher)
    return result


def difference(value: float, resampled: NDArray[Any], *, higher: bool) -> dict[str, Any]:
    """A difference with its interval, from resamples of it; the verdict is `within noise` if that contains zero."""
    low, high = _interval(resampled)
    sure = low > 0 or high < 0
    verdict = ("better" if (value > 0) == higher else "worse") if sure else "within noise"
    return {"value": value, "low": low, "high": high, "verdict": verdict}


def _resampled(sides: Sequence[Sequence[Record]], metric: Metric) -> list[NDArray[Any]]:
    """The metric of each resample, for each side; all sides share the resamples."""
    size, function = len(sides[0]), metric.function
    if isinstance(function, SumMetric):
        terms = [function.terms(records) for records in sides]
        return [np.concatenate([function.value(counts @ each) for counts in counted(len(each))]) for each in terms]
    # Without sums every resample is a loop. Thousands of rows have narrow intervals already: fewer give the same.
    count = RESAMPLES if size <= 500 else max(100, RESAMPLES * 500 // size)
    drawn = [places for chunk, _ in resamples(size, count) for places in chunk]
    return [np.array([function([records[i] for i in places]) for places in drawn]) for records in sides]


def resamples(
    size: int, count: int = RESAMPLES, runs: int = 1, seed: int = 0
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield `count` bootstrap resamples in chunks, the same for every call with the same arguments.

    Each chunk has the examples drawn, [draws, size], and the runs drawn (one per seed of a comparison), [draws, runs].
    """
    rng = np.random.default_rng(seed)
    step = 1 if runs > 1 else max(1, 2_000_000 // max(1, size))
    for done in range(0, count, step):
        draws = min(step, count - done)
        yield rng.integers(0, size, (draws, size)), rng.integers(0, runs, (draws, runs))


def counted(size: int) -> Iterator[NDArray[Any]]:
    """The same resamples as how often each example is drawn: [draws, size]."""
    for places, _ in resamples(size):
        flat = places + size * np.arange(len(places))[:, None]
        yield np.bincount(flat.ravel(), minlength=places.size).reshape(places.shape).astype(float)


def _interval(resampled: NDArray[Any]) -> tuple[float, float]:
    ordered = np.sort(resampled)
    low, high = (float(ordered[round(share * (len(ordered) - 1))]) for share in (0.025, 0.975))
    return low, high
