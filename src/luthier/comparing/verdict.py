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

from luthier.evaluation.base import EVALUATIONS, MetricFunction, Record

RESAMPLES = 2000
SLOW_RESAMPLES = 300
"""For a metric that is no ratio of sums over examples, each resample costs a pass in Python."""
LEVEL = 0.05

Numbers = np.ndarray[Any, np.dtype[np.float64]]


def metric(name: str) -> tuple[MetricFunction, bool]:
    """(the function of a metric, is higher better?)."""
    for evaluation in EVALUATIONS.names():
        made = EVALUATIONS.get(evaluation)()
        if name in made.metrics():
            return made.metrics()[name], made.higher_is_better
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
    dice = np.random.default_rng(seed)
    sums = _as_sums(function, runs)
    value = float(np.mean([function(run) for run in runs]))
    sampled = []
    for _ in range(RESAMPLES if sums is not None else SLOW_RESAMPLES):
        chosen = dice.integers(0, examples, examples)
        picked = dice.integers(0, len(runs), len(runs))
        if sums is not None:
            above, below = sums
            sampled.append(np.mean([above[run][chosen].sum() / max(below[run][chosen].sum(), 1e-12) for run in picked]))
        else:
            sampled.append(np.mean([function([runs[run][i] for i in chosen]) for run in picked]))
    return Draws(value, np.asarray(sampled))


def _as_sums(function: MetricFunction, runs: Sequence[Sequence[Record]]) -> tuple[Numbers, Numbers] | None:
    """(numerators, denominators) [runs, examples], where the metric is the ratio of their sums, as most are.

    Each example's own value is asked for, weighted by its targets where it has any; whether that makes the metric is
    tried on all examples and on halves of them.
    """
    for key in (None, "targets"):
        below = np.array([[float(r.get(key, 0)) if key else 1.0 for r in run] for run in runs])
        try:
            above = np.array([[function([record]) for record in run] for run in runs]) * below
        except (ArithmeticError, KeyError, ValueError, TypeError):
            continue
        if not np.isfinite(above).all():
            continue
        parts = [slice(None), slice(0, None, 2), slice(1, None, 2), slice(0, max(1, len(runs[0]) // 3))]
        if all(
            abs(function(run[part]) - above[i][part].sum() / max(below[i][part].sum(), 1e-12)) <= 1e-9
            for i, run in enumerate(runs) for part in parts
        ):  # fmt: skip
            return above, below
    return None


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
