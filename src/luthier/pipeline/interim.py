"""The page of a run that is not finished, written again at its evaluations: a run that is stopped or killed has one."""

import time
from collections.abc import Mapping
from typing import Any

from luthier.core.events import Progress
from luthier.core.files import read_jsonl, write_text
from luthier.core.shell import public
from luthier.evaluation.records.context import Record
from luthier.pipeline.measure import UNMEASURED
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from luthier.runs.provenance import environment

EVERY, TIMES = 5.0, 50.0
"""Seconds between two pages at least, and at least so many times what writing the last one took: under 2 % of a run."""


def write_page(result: Mapping[str, Any], config: RunConfig, folder: RunFolder) -> None:
    """Write loss.png and report.html, from a result and what else stands in the folder."""
    from luthier.reports import chart, run_report

    title = f"{public(result['run'])}: {result['method']} on {public(result['model'])}"
    history, base = folder.history(), run_report.base_loss(result)
    curve = chart.loss_chart(history, title=title, base=base, kept_step=result.get("kept_step"))
    folder.loss_png.write_bytes(chart.png(curve.svg()))
    data, predictions = folder.read_json(folder.data), [*read_jsonl(folder.predictions)] if result["tuned"] else []
    write_text(folder.report, run_report.render(result, data, history, config, environment(), predictions))


class InterimPage(Progress):
    """Writes the page of a run that trains: at its evaluations, but not more often than every few seconds."""

    def __init__(self, config: RunConfig, folder: RunFolder, facts: Mapping[str, Any], base: list[Record]) -> None:
        targets = sum(record.get("targets", 0) for record in base)
        loss = sum(record.get("loss_sum", 0.0) for record in base) / targets if targets else None
        self.config, self.folder = config, folder
        self.facts = {**UNMEASURED, **facts, "base": {} if loss is None else {"loss": {"value": loss}}}
        self.total, self.written, self.took = 0, 0.0, 0.0

    def train_begins(self, start: int, steps: int) -> None:
        """Nothing is written yet: there may be no step."""
        self.total, self.written = steps, time.monotonic()

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        """Write the page, unless the last one is new."""
        if time.monotonic() - self.written >= max(EVERY, TIMES * self.took):
            self.write()

    def write(self) -> None:
        """Write the page as far as the run has come; nothing before the first step."""
        began = time.monotonic()
        steps = [line for line in self.folder.history() if "loss" in line]
        if not steps:
            return
        seconds, tokens = (sum(line.get(key) or 0 for line in steps) for key in ("seconds", "tokens"))
        now = {"steps": steps[-1]["step"], "total_steps": self.total, "lr": steps[-1]["lr"], "tokens": tokens}
        now |= {"train_seconds": seconds, "tokens_per_second": tokens / max(seconds, 1e-9)}
        now |= {"finished": time.strftime("%Y-%m-%d %H:%M:%S")}
        write_page({**self.facts, **now}, self.config, self.folder)
        self.written = time.monotonic()
        self.took = self.written - began
