"""What the other commands give back: a check of the data, a plan, a choice of method, a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from luthier.api import show
from luthier.api.run import Run
from luthier.core.errors import require_package
from luthier.core.units import duration, gigabytes
from luthier.reports.run_report import figure

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped, unused-ignore]


class _Result:
    """What a command found, with the body of its JSON."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def to_dict(self) -> dict[str, Any]:
        """All of it, as the command's JSON has it."""
        return dict(self._body)


class DataCheck(_Result):
    """What is in the data, as `luthier check` finds it."""

    @property
    def stops(self) -> bool:
        """Would `train` stop at this data?"""
        return bool(self._body["stops"])

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What to know: dicts with `level` (stop, warn, note), `what`, `text` and `places`, the worst first."""
        return list(self._body["findings"])

    @property
    def refusals(self) -> list[dict[str, Any]]:
        """Rows that cannot be used: `where` they are, and the `reason`."""
        return list(self._body["refusals"])

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens of a row: p50, p90, p95, p99, max."""
        return dict(self._body["lengths"])

    @property
    def labels(self) -> dict[str, dict[str, int]]:
        """How often each label occurs in the training and in the validation rows."""
        return dict(self._body["labels"])

    @property
    def report(self) -> show.Page:
        """The page, which shows the loss mask in color."""
        return show.Page(Path(self._body["out"]) / "data.html")

    def __repr__(self) -> str:
        said = "train would stop" if self.stops else "train would not stop"
        return f"DataCheck({said}, {len(self.findings)} findings, {len(self.refusals)} refused rows)"

    def _repr_html_(self) -> str:
        rows = [(each["level"], show.said(each["text"])) for each in self.findings]
        said = "Training would stop at this data." if self.stops else "Training would not stop at this data."
        found = show.html_table(("level", "finding"), rows) if rows else Markup()
        return show.head(show.said(said)) + found + show.soft(f"report: {self.report}")


class RunPlan(_Result):
    """Memory and time that a run will need, estimated before any weights are there."""

    @property
    def fits(self) -> bool | None:
        """Is there room for it on this machine, or on the devices asked for? None where that cannot be estimated."""
        return None if self._body["fits"] is None else bool(self._body["fits"])

    @property
    def bytes(self) -> int | None:
        """Largest memory of the run; None where it cannot be estimated."""
        return None if self._body["plan"] is None else int(self._body["plan"]["bytes"])

    @property
    def parts(self) -> dict[str, int]:
        """The same in bytes by what takes it."""
        return {} if self._body["plan"] is None else dict(self._body["plan"]["parts"])

    @property
    def seconds(self) -> float | None:
        """Time of training, without evaluation."""
        return None if self._body["plan"] is None else float(self._body["plan"]["seconds"])

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return int(self._body["steps"])

    @property
    def cluster(self) -> dict[str, Any] | None:
        """The devices asked for: `parallel` that train takes and `why`, and every one of the `layouts`."""
        return self._body.get("cluster")

    @property
    def alternatives(self) -> list[dict[str, Any]]:
        """Other settings: `change`, `bytes`, `seconds`, and whether that `fits`."""
        return list(self._body["alternatives"])

    def __repr__(self) -> str:
        if self.bytes is None or self.seconds is None:
            return f"RunPlan({self.steps} steps, not estimated: {self._body['why']})"
        room = "fits" if self.fits else "does not fit"
        return f"RunPlan({self.steps} steps, {gigabytes(self.bytes)}, {duration(self.seconds)}, {room})"

    def _repr_html_(self) -> str:
        if self.bytes is None or self.seconds is None:
            return show.soft(f"memory cannot be estimated for this model: {self._body['why']}")
        rows = [(show.said(part), gigabytes(size)) for part, size in self.parts.items()]
        said = f"{self._body['method']} on {self._body['model']}: {gigabytes(self.bytes)}, {duration(self.seconds)}"
        room = self._body["room"]
        free = f"{gigabytes(room['free'])} of {gigabytes(room['total'])} are free"
        fits = "it fits" if self.fits else "it does not fit"
        return show.head(said) + show.soft(fits) + show.soft(free) + show.html_table(("memory", ">"), rows)


class Choice(_Result):
    """Which method to take, with the reasons."""

    @property
    def best(self) -> str | None:
        """The first of the ranking, for `method=`; None where nothing fits."""
        ranked = self.ranked
        return str(ranked[0]["method"]) if ranked else None

    @property
    def ranked(self) -> list[dict[str, Any]]:
        """Methods that can serve and fit, the best first: `method`, `memory`, `seconds`, `reasons` and more."""
        return list(self._body["ranked"])

    @property
    def excluded(self) -> list[dict[str, Any]]:
        """Methods that cannot, with the reason."""
        return list(self._body["ruled_out"])

    @property
    def evidence(self) -> list[dict[str, Any]]:
        """The measurements that the ranking rests on, the nearest first: `by`, `distance`, `text`, `source`."""
        return list(self._body["evidence"])

    def __repr__(self) -> str:
        return f"Choice({', '.join(each['method'] for each in self.ranked) or 'nothing fits'})"

    def _repr_html_(self) -> str:
        rows = [
            (
                each["method"],
                "" if each["memory"] is None else gigabytes(each["memory"]),
                "" if each["seconds"] is None else duration(each["seconds"]),
                f"{each['trained']:,}",
                Markup("<br>").join(show.said(reason["text"]) for reason in each["reasons"]),
            )
            for each in self.ranked
        ]
        measured = [(show.said(each["text"]), each["cited"]) for each in self.evidence]
        return (
            show.head(show.said(self._body["question"]["said"]))
            + show.html_table(("method", ">memory", ">training", ">trained", "reasons"), rows)
            + show.html_table(("measurements, the nearest to your case first", "source"), measured)
        )


class Comparison(_Result):
    """Methods side by side, on the same base, rows and tokens."""

    @property
    def metric(self) -> str:
        """The metric that ranks."""
        return str(self._body["metric"])

    @property
    def table(self) -> list[dict[str, Any]]:
        """A dict for each method, the best score first; those that did not run have a `reason`."""
        return list(self._body["rows"])

    @property
    def runs(self) -> dict[str, Run]:
        """Method -> its run of the first seed."""
        return {row["arm"]: Run(row["run"]) for row in self.table if row["status"] == "done"}

    @property
    def best(self) -> Run | None:
        """The run of the method with the best score; None where none ran."""
        return self.runs.get(self._body["best"])

    @property
    def report(self) -> show.Page:
        """The page: table, significant differences, charts."""
        return show.Page(Path(self._body["folder"]) / "compare.html")

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each method: score with interval, verdict against the best, parameters, bytes, seconds."""
        require_package("pandas", "to_pandas: the package pandas is not installed", "pip install pandas")
        import pandas

        keys = ("arm", "status", "reason", "trainable", "share", "adapter_bytes", "memory", "tokens_per_second")
        return pandas.DataFrame(
            {
                **{"method" if key == "arm" else key: row.get(key) for key in keys},
                "seconds": row.get("seconds"),
                **{key: (row.get("score") or {}).get(key) for key in ("value", "low", "high")},
                "against_best": self._verdict(row),
            }
            for row in self.table
        ).set_index("method")

    def _verdict(self, row: Mapping[str, Any]) -> str:
        if row["arm"] == self._body["best"]:
            return "the best"
        return str(row.get("against", {}).get("best", {}).get("verdict", ""))

    def __repr__(self) -> str:
        shown = ", ".join(f"{row['arm']} {self._shown(row['score'])}" for row in self.table if row["status"] == "done")
        return f"Comparison({self.metric}: {shown or 'nothing ran'})"

    def _repr_html_(self) -> str:
        rows: list[Sequence[Any]] = []
        if self._body["base"]:
            rows.append((show.said("base model"), self._shown(self._body["base"]), "", "", ""))
        for row in self.table:
            if row["status"] == "done":
                costs = f"{row['trainable']:,}", duration(row["seconds"])
                rows.append((row["arm"], self._shown(row["score"]), show.said(self._verdict(row)), *costs))
            else:
                rows.append((row["arm"], "", show.said(row["reason"]), "", ""))
        columns = ("method", f">{self.metric.replace('_', ' ')}", "against the best", ">trained", ">training")
        return show.html_table(columns, rows) + show.soft(f"report: {self.report}")

    def _shown(self, score: Mapping[str, Any]) -> str:
        value, low, high = (figure(self.metric, score[key]) for key in ("value", "low", "high"))
        return f"{value} ({low.removesuffix(' %')} to {high})"
