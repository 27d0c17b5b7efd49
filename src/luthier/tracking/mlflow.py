"""MLflow: a SQLite file beside the run, for `mlflow ui --backend-store-uri sqlite:///runs/mlflow.db`, or a server.

Every value is in the database when `flush` returns, and a resumed run asks the database for its last step. Telemetry is
switched off; credentials of a server stand in MLflow's own environment variables, such as MLFLOW_TRACKING_TOKEN.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from time import time as now
from typing import Any, ClassVar

from pydantic import PrivateAttr

from luthier.core.shell import shell_line
from luthier.tracking.base import HELD_OUT, LEARNING_RATE, START, Position, State, TrackedRun, Tracker, markdown

STATES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
AT_ONCE = 1000
"""Values of one request, and characters of one parameter: more are refused by MLflow."""
LONGEST = 6000


class MLflow(Tracker):
    """A run in MLflow."""

    extra: ClassVar[str] = "mlflow"
    packages: ClassVar[tuple[str, ...]] = ("mlflow",)
    quiet: ClassVar[Mapping[str, str]] = {"MLFLOW_DISABLE_TELEMETRY": "true"}

    uri: str = ""
    """Address of a tracking server or database; empty: the file mlflow.db beside the run folder."""

    _client: Any = None
    _run: str = ""
    _waiting: list[Any] = PrivateAttr(default_factory=list)

    def begin(self, run: TrackedRun) -> Position:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        beside = run.beside("", "mlflow.db")
        self._client = MlflowClient(self.uri or f"sqlite:///{beside}")
        experiment = self._client.get_experiment_by_name(self.project)
        files = None if self.uri else beside.with_name("mlartifacts").as_uri()
        number = experiment.experiment_id if experiment else self._client.create_experiment(self.project, files)
        found = self._client.search_runs([number], f"tags.`luthier.id` = '{run.id}'") if run.resumed else []
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return self._last()
        self._run = self._client.create_run(number, tags={"luthier.id": run.id}, run_name=run.name).info.run_id
        params = [Param(key, str(value)[:LONGEST]) for key, value in run.config.items()]
        for first in range(0, len(params), 100):
            self._client.log_batch(self._run, params=params[first : first + 100])
        return START

    def _last(self) -> Position:
        """What the store has. A request is one transaction, so a step is in it as a whole or not at all."""
        steps = [point.step for point in self._client.get_metric_history(self._run, LEARNING_RATE)]
        evaluated = [point.step for point in self._client.get_metric_history(self._run, HELD_OUT)]
        return max([START, *(Position(step, 0) for step in steps), *(Position(step, 1) for step in evaluated)])

    def log(self, step: int, values: Mapping[str, float], time: float | None = None) -> None:
        from mlflow.entities import Metric

        if len(self._waiting) + len(values) > AT_ONCE:
            self.flush()
        when = int(1000 * (time or now()))
        self._waiting += [Metric(name, value, when, step) for name, value in values.items()]

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._client.log_batch(self._run, metrics=waiting, synchronous=True)

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        self.log(step, values)

    def texts(self, step: int, name: str, texts: Mapping[str, str]) -> None:
        self._client.log_text(self._run, markdown(texts), f"{name}.md")

    def image(self, step: int, name: str, file: Path) -> None:
        self._client.log_artifact(self._run, str(file))

    def page(self, step: int, name: str, file: Path) -> None:
        self._client.log_artifact(self._run, str(file))

    def command(self, run: TrackedRun) -> str:
        store = f"sqlite:///{run.shown(run.beside('', 'mlflow.db'))}"
        return "" if self.uri else shell_line("mlflow", "ui", "--backend-store-uri", store)

    def finish(self, state: State, error: str) -> None:
        self.flush()
        if error:
            self._client.set_tag(self._run, "error", error)
        self._client.set_terminated(self._run, STATES[state])
