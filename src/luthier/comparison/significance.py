"""Which differences between methods are real: one bootstrap over examples and seeds for all of them.

A resample draws examples and seeds with replacement, the same ones for every method (paired: Koehn 2004, W04-3250; over
seeds as well, for which run of a method one has is chance too: Dror et al. 2018, P18-1128). The interval is the middle
95 % of the resampled scores; p is twice the share of resamples in which a difference has the other sign, or none.
Where k differences are asked about, p is Holm's (1979): the smallest counts k-fold, the next k - 1-fold, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.evaluation.metrics.base import EVALUATIONS, MetricFunction, SumMetric
from luthier.evaluation.records.context import Record

RESAMPLES = 2000
SLOW_RESAMPLES = 300
"""For a metric that does not follow from sums over the examples, a resample costs a pass in Python."""
LEVEL = 0.05

Numbers = np.ndarray[Any, np.dtype[np.float64]]


def metric(name: str) -> tuple[MetricFunction, bool]:
    """(the function of a metric, is higher better?)."""
    for evaluation in EVALUATIONS.names():
        made = EVALUATIONS.get(evaluation)()
        if name in made.metrics():
            return made.metrics()[name], made.higher(name)
    raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Draws:
    """Resamples of a method's score, and the score itself."""

    value: float
    sampled: Numbers

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95 %."""
        low, high = np.quantile(self.sampled, (LEVEL / 2, 1 - LEVEL / 2))
        return float(low), float(high)


def draws(function: MetricFunction, runs: Sequence[Sequence[Record]], seed: int = 0) -> Draws:
    """Of the records of one method's runs, a list a seed; methods with as many examples and seeds are drawn alike."""
    examples = len(runs[0])
    rng = np.random.default_rng(seed)
    terms = [function.terms(run) for run in runs] if isinstance(function, SumMetric) else None
    value = float(np.mean([function(run) for run in runs]))
    sampled = []
    for _ in range(RESAMPLES if terms is not None else SLOW_RESAMPLES):
        chosen = rng.integers(0, examples, examples)
        picked = rng.integers(0, len(runs), len(runs))
        if isinstance(function, SumMetric) and terms is not None:
            sums = np.stack([terms[run][chosen].sum(0) for run in picked])
            sampled.append(float(function.value(sums).mean()))
        else:
            sampled.append(float(np.mean([function([runs[run][i] for i in chosen]) for run in picked])))
    return Draws(value, np.asarray(sampled))


def differences(found: Mapping[str, Draws], reference: str, *, higher: bool) -> dict[str, dict[str, Any]]:
    """Each other method minus `reference`: value, interval, Holm's p, and a verdict in words."""
    made: dict[str, dict[str, Any]] = {}
    for name, own in found.items():
        if name == reference or len(own.sampled) != len(found[reference].sampled):
            continue
        drawn = own.sampled - found[reference].sampled
        low, high = np.quantile(drawn, (LEVEL / 2, 1 - LEVEL / 2))
        p = min(1.0, 2 * max(1 / len(drawn), min(float((drawn <= 0).mean()), float((drawn >= 0).mean()))))
        made[name] = {"value": own.value - found[reference].value, "low": float(low), "high": float(high), "p": p}
    least = 0.0
    for place, name in enumerate(sorted(made, key=lambda each: made[each]["p"])):
        least = max(least, min(1.0, made[name]["p"] * (len(made) - place)))
        made[name]["p"] = least
    for each in made.values():
        real = each["p"] < LEVEL
        each["verdict"] = "no real difference" if not real else "better" if (each["value"] > 0) == higher else "worse"
    return made


def pareto(points: Mapping[str, tuple[float, float]], *, higher: bool) -> list[str]:
    """Those no other beats in cost and score at once: (cost, score) each, the cheapest first."""
    sign = 1.0 if higher else -1.0
    best, front = -np.inf, []
    for name, (_, score) in sorted(points.items(), key=lambda each: (each[1][0], -sign * each[1][1])):
        if sign * score > best:
            best = sign * score
            front.append(name)
    return front
