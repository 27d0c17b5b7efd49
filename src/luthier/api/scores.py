"""Scores with their intervals, base against tuned, as objects."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import nan
from typing import Any

from markupsafe import Markup

from luthier.api import show
from luthier.reports.run_report import figure


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % confidence interval; NaN where it could not be computed."""

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.value

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> "Interval":
        """From what stands in result.json, where null stands for NaN."""
        return cls(*(nan if numbers[key] is None else numbers[key] for key in ("value", "low", "high")))


@dataclass(frozen=True, slots=True, repr=False)
class MetricScore:
    """One metric of the tuned model, and of its base where that was measured. Shares are from 0 to 1."""

    metric: str
    value: float
    low: float
    """Lower end of the 95 % confidence interval over examples."""
    high: float
    higher_is_better: bool
    base: Interval | None = None
    difference: Interval | None = None
    """Tuned minus base, by a paired bootstrap over examples."""
    verdict: str = ""
    """`better`, `worse` or `within noise`; empty without a base."""

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return (
            f"MetricScore({_words(self)}, 95 % CI {figure(self.metric, self.low)} to {figure(self.metric, self.high)})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as a plain dict."""
        return asdict(self)


class Scores(Mapping[str, MetricScore]):
    """What was measured: metric -> score, the metric that ranks first."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        """`body` is a result as result.json has it."""
        self._body = body
        base, change = body["base"], body["difference"]
        names = sorted(body["tuned"], key=lambda name: name != body["primary_metric"])
        self._scores = {name: _score(name, body["tuned"][name], base.get(name), change.get(name)) for name in names}

    @property
    def primary(self) -> MetricScore | None:
        """The score that ranks the run; None where nothing was held out."""
        return self._scores.get(self._body["primary_metric"])

    @property
    def examples(self) -> int:
        """Held-out examples that were measured."""
        return int(self._body["validation_examples"])

    @property
    def caveats(self) -> list[str]:
        """What to know before relying on the scores."""
        return list(self._body["caveats"])

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """What base and tuned model said on each example, with its text, reference answer and measurements."""
        return list(self._body.get("predictions", []))

    def to_dict(self) -> dict[str, Any]:
        """The part of result.json that is about scores."""
        return dict(self._body)

    def __getitem__(self, metric: str) -> MetricScore:
        if metric not in self._scores:
            raise KeyError(f"no score {metric!r}; there are: {', '.join(self._scores) or 'none'}")
        return self._scores[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    def __repr__(self) -> str:
        return f"Scores({self.examples} examples: {'; '.join(map(_words, self.values())) or 'nothing was held out'})"

    def _repr_html_(self) -> str:
        rows = [
            (
                score.metric.replace("_", " "),
                "" if score.base is None else figure(score.metric, score.base.value),
                figure(score.metric, score.value),
                f"{figure(score.metric, score.low)} to {figure(score.metric, score.high)}",
                "" if score.difference is None else figure(score.metric, score.difference.value, sign=True),
                show.said(score.verdict),
            )
            for score in self.values()
        ]
        columns = ("metric", ">base", ">tuned", ">95 % CI", ">difference", "verdict")
        what = show.soft(f"{self.examples} held-out examples")
        return what + show.html_table(columns, rows) + Markup("").join(map(show.soft, self.caveats))


def _score(metric: str, tuned: Mapping[str, Any], base: Any, change: Any) -> MetricScore:
    own = Interval.of(tuned)
    sides = Interval.of(base) if base else None, Interval.of(change) if change else None
    verdict = str(change.get("verdict", "")) if change else ""
    return MetricScore(metric, own.value, own.low, own.high, bool(tuned["higher_is_better"]), *sides, verdict)


def _words(score: MetricScore) -> str:
    before = "" if score.base is None else f"{figure(score.metric, score.base.value)} -> "
    return f"{score.metric} {before}{figure(score.metric, score.value)}{score.verdict and f' ({score.verdict})'}"
