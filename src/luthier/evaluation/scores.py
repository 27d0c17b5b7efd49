"""Scores with 95 % confidence intervals, base against tuned, and which of them a comparison ranks by.

Intervals are percentiles of the bootstrap over examples (Efron 1979): the held-out examples are drawn anew with
replacement, and the score is made from each draw. For a difference base and tuned model are drawn alike (paired), which
takes out what is hard for both. A difference whose interval holds zero is within noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError, did_you_mean
from luthier.evaluation.metrics.base import EVALUATIONS, Evaluation, MetricFunction, SumMetric
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.records.generate import open_answers
from luthier.evaluation.records.settings import EvaluateConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 1000
FEW = 20
"""Examples below which an interval of the bootstrap is too narrow to lean on."""

ORDER = ("pass_rate", "judge", "pearson", "accuracy", "rouge_l", "exact_match", "perplexity", "loss")
"""Scores that a comparison ranks by, the first there is. What the user brought comes first; exact match of long
answers does not count (see `choose`)."""


def evaluations(subject: EvalContext) -> list[Evaluation]:
    """Every evaluation that fits the subject's task and rows."""
    known = [EVALUATIONS.get(name)() for name in EVALUATIONS.names()]
    return [evaluation for evaluation in known if evaluation.applies(subject)]


def lacking(subject: EvalContext) -> list[str]:
    """What would fit and cannot be measured here, with the fix."""
    known = [EVALUATIONS.get(name)() for name in EVALUATIONS.names()]
    return [why for evaluation in known if (why := evaluation.lacks(subject))]


def check_settings(settings: EvaluateConfig) -> None:
    """Refuse, before anything is read, what cannot work for any data: no such metric, check file or key."""
    known = [metric for name in EVALUATIONS.names() for metric in EVALUATIONS.get(name)().metrics()]
    if settings.metric is not None and settings.metric not in known:
        raise InputError(
            f"evaluate.metric: there is no score {settings.metric!r}{did_you_mean(settings.metric, known)}",
            fix=f"one of: {', '.join(known)}",
        )
    if settings.check is not None:
        from luthier.evaluation.metrics.check import load_check

        load_check(settings.check)
    if settings.judge is not None:
        from luthier.evaluation.metrics.judge import key_of

        key_of(settings.judge)


def choose(subject: EvalContext, measured: Sequence[str]) -> str:
    """The score of these that a comparison ranks by. InputError where the recipe names one that is not measured."""
    wanted = subject.settings.metric
    if wanted is not None and wanted not in measured:
        raise InputError(
            f"evaluate.metric: {wanted} is not measured on these rows (task {subject.task.name}"
            + ("".join(f"; {why}" for why in lacking(subject)) + ")"),
            fix=f"one of: {', '.join(measured)}",
        )
    if wanted is not None:
        return wanted
    # A long answer that is not word for word the data's may be as good.
    fit = [name for name in measured if name != "exact_match" or not open_answers(subject)]
    return next((name for name in ORDER if name in fit), next(iter(fit), ""))


def headline(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """The one score a comparison ranks by: that marked `headline`, as `compare` marks what `choose` says.

    Where none is marked, as in results of older runs, the first of ORDER. "" where there is no score at all.
    """
    marked = (name for name, score in scores.items() if score.get("headline"))
    return next(marked, None) or next((name for name in ORDER if name in scores), next(iter(scores), ""))


def measure(subject: EvalContext) -> list[Record]:
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
    for name, (function, higher) in metrics_of(chosen).items():
        low, high = _interval(_drawn([records], function)[0])
        result[name] = {"value": function(records), "low": low, "high": high, "higher_is_better": higher}
    return result


def differences(
    base: Sequence[Record], tuned: Sequence[Record], chosen: Sequence[Evaluation]
) -> dict[str, dict[str, Any]]:
    """{metric: {value, low, high, verdict}}: tuned minus base with the paired bootstrap's 95 % interval.

    The verdict is `better` or `worse`, or `within noise` where the interval holds zero.
    """
    result = {}
    for name, (function, higher) in metrics_of(chosen).items():
        before, after = _drawn([base, tuned], function)
        result[name] = difference(function(tuned) - function(base), after - before, higher=higher)
    return result


def difference(value: float, drawn: NDArray[Any], *, higher: bool) -> dict[str, Any]:
    """A difference with its interval, from resamples of it, in numbers and in a word."""
    low, high = _interval(drawn)
    sure = low > 0 or high < 0
    verdict = ("better" if (value > 0) == higher else "worse") if sure else "within noise"
    return {"value": value, "low": low, "high": high, "verdict": verdict}


def metrics_of(chosen: Sequence[Evaluation]) -> dict[str, tuple[MetricFunction, bool]]:
    """Name -> (metric, is more better?)."""
    return {name: (function, e.higher(name)) for e in chosen for name, function in e.metrics().items()}


def _drawn(sides: Sequence[Sequence[Record]], function: MetricFunction) -> list[NDArray[Any]]:
    """The metric of each resample, for each side; all sides are drawn alike."""
    import numpy as np

    if isinstance(function, SumMetric):
        terms = [function.terms(records) for records in sides]
        return [np.concatenate([function.value(counts @ each) for counts in resamples(len(each))]) for each in terms]
    # Without sums every draw is a loop. Thousands of rows have narrow intervals already: fewer draws give the same.
    count = RESAMPLES if len(sides[0]) <= 500 else max(100, RESAMPLES * 500 // len(sides[0]))
    rng = np.random.default_rng(0)
    places = [rng.integers(0, len(sides[0]), len(sides[0])) for _ in range(count)]
    return [np.array([function([records[i] for i in drawn]) for drawn in places]) for records in sides]


def resamples(size: int) -> Iterator[NDArray[Any]]:
    """How often each of `size` examples is drawn: [draws, size], some draws at a time, the same for every call."""
    import numpy as np

    rng, left = np.random.default_rng(0), RESAMPLES
    while left:
        draws = min(left, max(1, 2_000_000 // max(1, size)))
        places = rng.integers(0, size, (draws, size)) + size * np.arange(draws)[:, None]
        yield np.bincount(places.ravel(), minlength=draws * size).reshape(draws, size).astype(float)
        left -= draws


def _interval(drawn: NDArray[Any]) -> tuple[float, float]:
    import numpy as np

    ordered = np.sort(drawn)
    return tuple(float(ordered[round(share * (len(ordered) - 1))]) for share in (0.025, 0.975))  # type: ignore[return-value]


EACH = {"pearson": "squared_error", "spearman": "squared_error", "mcc": "accuracy", "macro_f1": "accuracy"}
"""Scores that a single example has none of -> the one that tells its share in them."""
