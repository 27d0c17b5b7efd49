"""Read the data as a run would, and say what is in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.events import SILENT, Progress
from luthier.pipeline.prepare import with_decisions
from luthier.recipe.config import RunConfig

if TYPE_CHECKING:
    from luthier.data.checks.audit import Audit
    from luthier.data.prepared import Prepared
    from luthier.rendering.chat_template import Template


@dataclass(frozen=True, slots=True)
class Checked:
    """The rows that a run would learn from, as tokens, and what was found in them."""

    audit: "Audit"
    data: "Prepared"
    template: "Template"


def check(config: RunConfig, out: Path, *, progress: Progress = SILENT) -> dict[str, Any]:
    """Read the data as `train` would and say what is in it: data.html, data.json and refused.jsonl in `out`.

    Loads a tokenizer and no weights. `stops` in what is returned: would train stop at this data?
    """
    from luthier.reports import data_report

    data_report.refuse_run_folder(out)
    return report(config, checked_rows(config, progress), out)


def checked_rows(config: RunConfig, progress: Progress = SILENT) -> Checked:
    """Read and check the data, without the rows that would stop a run."""
    from luthier.data.checks.audit import read_all, survey
    from luthier.models.load import load_tokenizer, locate, row_limit
    from luthier.rendering.chat_template import Template

    progress.stage("reading data")
    whole = config.data.model_copy(update={"streaming": False})  # a look at the data is a look at all of it
    data = read_all(whole, config.task, progress)
    config = with_decisions(config.model_copy(update={"data": whole}), data)
    model = config.model.model_copy(update={"init": "random"})  # its weights need not be there
    source = locate(model)
    progress.stage(f"tokenizing as {model.path} does")
    template = Template(load_tokenizer(model, source))
    limit = row_limit(model, source, template.tokenizer, config.train.max_length, config.method.positions)
    return Checked(survey(config.data, config.task, data, template, limit, progress), data, template)


def report(config: RunConfig, found: Checked, out: Path) -> dict[str, Any]:
    """Write what was found; returns what data.json holds."""
    from luthier.reports import data_report

    named = "path" in config.model.model_fields_set
    return data_report.write_report(out, found.audit, found.data, config.model.path, named=named)
