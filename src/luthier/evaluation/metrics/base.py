"""What a metric is: a function of records, one per held-out example."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.core.errors import install_anywhere
from luthier.core.registry import Family, Plugin
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.records.settings import EvaluateConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

MetricFunction = Callable[[Sequence[Record]], float]


@dataclass(frozen=True)
class SumMetric:
    """A metric that follows from sums over the records, so that a resample costs a matrix product and not a loop."""

    terms: "Callable[[Sequence[Record]], NDArray[Any]]"
    """[records, terms]: what is summed."""
    value: "Callable[[NDArray[Any]], NDArray[Any]]"
    """[draws, terms] -> [draws]: the metric of each sum."""
    key: str = ""
    """Key of the records that have this metric; "" if all have it."""

    def __call__(self, records: Sequence[Record]) -> float:
        """The metric of these records; 0 if there are none."""
        return float(self.value(self.terms(records).sum(0, keepdims=True))[0]) if records else 0.0


def mean_of(key: str, weight: str = "") -> SumMetric:
    """The sum of record[key] / their number, or the sum of record[weight], over the records that have the key."""
    import numpy as np

    def terms(records: Sequence[Record]) -> "NDArray[Any]":
        pairs = [[float(r[key]), float(r[weight]) if weight else 1.0] if key in r else [0.0, 0.0] for r in records]
        return np.array(pairs).reshape(-1, 2)

    return SumMetric(terms, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1), key)


@dataclass(frozen=True)
class Metric:
    """A function of records, and how its value is read."""

    function: MetricFunction
    rank: int | None = None  # of the measured metrics, the one with the lowest rank is primary; None: only if asked for
    higher: bool = True  # whether more is better
    scale: str | None = None  # None: a share, shown in percent; else a number with this range, "" if it has none
    per_example: str = ""  # the metric that stands for it on a single example


Table = Mapping[str, Metric]


class Evaluation(Plugin):
    """One way to evaluate a model, with one or more metrics."""

    required: ClassVar[tuple[str, ...]] = ("applies", "measure")

    table: ClassVar[Table]
    """Its metrics by name."""
    package: ClassVar[str] = ""
    """Package of the extra `scores` that it needs."""

    def applies(self, context: EvalContext) -> bool:
        """Whether these rows can be evaluated this way."""
        raise NotImplementedError

    def may_rank(self, context: EvalContext) -> bool:
        """Whether runs on these rows may be ranked by it."""
        return True

    def check_settings(self, settings: EvaluateConfig) -> None:
        """Raise InputError for settings that cannot work for any data."""

    def missing(self) -> str:
        """Why it cannot be measured here, with the fix; "" if nothing is missing."""
        if not self.package or find_spec(self.package):
            return ""
        names = ", ".join(self.table)
        return f"{names}: not measured, {self.package} is not installed ({install_anywhere('scores')})"

    def measure(self, context: EvalContext) -> list[Record]:
        """One record per example, in order; the records of all evaluations are merged in the end."""
        raise NotImplementedError


EVALUATIONS = Family(Evaluation, "evaluation")


def known_evaluations() -> list[Evaluation]:
    """Every evaluation there is, sorted by name."""
    return [EVALUATIONS.get(name)() for name in EVALUATIONS.names()]


def metrics_of(chosen: Sequence[Evaluation] | None = None) -> dict[str, Metric]:
    """The metrics of these evaluations by name; by default of all there are."""
    evaluations = known_evaluations() if chosen is None else chosen
    return {name: metric for each in evaluations for name, metric in each.table.items()}
