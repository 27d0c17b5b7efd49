"""Which differences between methods are significant: one bootstrap over examples and seeds for all of them.

A resample draws examples and seeds with replacement, the same ones for every method (paired: Koehn 2004, W04-3250; over
seeds as well, because which run one has is chance too: Dror et al. 2018, P18-1128). The interval is the middle 95 % of
the resampled scores; p is twice the share of resamples in which a difference has the other sign, or none.
For k differences p is Holm's (1979): the smallest counts k-fold, the next k - 1-fold, and so on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.evaluation.metrics.base import MetricFunction, SumMetric
from luthier.evaluation.records.context import Record
from luthier.evaluation.scores import resamples

RESAMPLES = 2000
SLOW_RESAMPLES = 300
"""For a metric that does not follow from sums over the examples, a resample costs a pass in Python."""
LEVEL = 0.05

Numbers = np.ndarray[Any, np.dtype[np.float64]]


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
    """Resample the records of one method's runs, a list for each seed.

    Methods with as many examples and seeds are resampled alike.
    """
    terms = [function.terms(run) for run in runs] if isinstance(function, SumMetric) else []
    sampled: list[float] = []
    for examples, seeds in resamples(len(runs[0]), RESAMPLES if terms else SLOW_RESAMPLES, len(runs), seed):
        for chosen, picked in zip(examples, seeds, strict=True):
            if isinstance(function, SumMetric):
                sums = np.stack([terms[run][chosen].sum(0) for run in picked])
                sampled.append(float(function.value(sums).mean()))
            else:
                sampled.append(float(np.mean([function([runs[run][i] for i in chosen]) for run in picked])))
    return Draws(float(np.mean([function(run) for run in runs])), np.asarray(sampled))


def differences_to(found: Mapping[str, Draws], reference: str, *, higher: bool) -> dict[str, dict[str, Any]]:
    """Each other method minus `reference`: value, interval, Holm's p, and a verdict in words."""
    made: dict[str, dict[str, Any]] = {}
    base = found[reference]
    for name, own in found.items():
        if name == reference or len(own.sampled) != len(base.sampled):
            continue
        paired = Draws(own.value - base.value, own.sampled - base.sampled)
        low, high = paired.interval
        sides = float((paired.sampled <= 0).mean()), float((paired.sampled >= 0).mean())
        p = min(1.0, 2 * max(1 / len(paired.sampled), min(sides)))
        made[name] = {"value": paired.value, "low": low, "high": high, "p": p}
    least = 0.0
    for place, each in enumerate(sorted(made.values(), key=lambda each: each["p"])):
        least = each["p"] = max(least, min(1.0, each["p"] * (len(made) - place)))
        better = "better" if (each["value"] > 0) == higher else "worse"
        each["verdict"] = better if least < LEVEL else "no real difference"
    return made


def pareto(points: Mapping[str, tuple[float, float]], *, higher: bool) -> list[str]:
    """The Pareto front of {name: (cost, score)}, the cheapest first."""
    sign = 1.0 if higher else -1.0
    best, front = -np.inf, []
    for name, (_, score) in sorted(points.items(), key=lambda each: (each[1][0], -sign * each[1][1])):
        if sign * score > best:
            best = sign * score
            front.append(name)
    return front
