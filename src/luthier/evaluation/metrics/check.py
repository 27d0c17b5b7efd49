"""A pass/fail function of yours: `evaluate.check: FILE.py` with check(prompt, answer, reference) -> bool, or 0 to 1.

`prompt` is the last user message, `answer` the model's, `reference` the data's. The file runs in this process and with
your rights, once per run. An exception in it counts as not passed; their number and the first one are reported.
"""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from luthier.core.errors import InputError
from luthier.evaluation.metrics.base import Evaluation, Metric, Table, mean_of
from luthier.evaluation.records.context import EvalContext, Record, answered, asks, references_of
from luthier.evaluation.records.settings import EvaluateConfig


class Check(Evaluation):
    """Share of answers that pass a function of yours."""

    table: ClassVar[Table] = {"pass_rate": Metric(mean_of("passed"), rank=0)}

    def applies(self, context: EvalContext) -> bool:
        return asks(context) and context.settings.check is not None

    def check_settings(self, settings: EvaluateConfig) -> None:
        if settings.check is not None:
            load_check(settings.check)

    def measure(self, context: EvalContext) -> list[Record]:
        check = load_check(str(context.settings.check))
        made: list[Record] = []
        errors: list[str] = []
        for example, record in zip(context.examples, answered(context), strict=True):
            made.append({})
            if not record:
                continue
            prompt = next((m.content for m in reversed(example.messages[:-1]) if m.role == "user"), "")
            try:
                each = [float(check(prompt, record["said"], reference)) for reference in references_of(record)]
                if odd := [share for share in each if not 0 <= share <= 1]:
                    raise ValueError(f"check returned {odd[0]}, which is not a bool and not a number from 0 to 1")
                made[-1] = {"passed": max(each)}  # with several right answers the best one counts
            except Exception as error:  # the user's code may raise anything, and one answer is not worth the run
                errors.append(f"{example.where}: {type(error).__name__}: {error}")
                made[-1] = {"passed": 0.0, "check_error": errors[-1]}
        if errors:
            context.counts["errors in check"] = len(errors)
            context.progress.warn(f"evaluate.check raised {len(errors)} times, which counts as failed: {errors[0]}")
        return made


def load_check(path: str) -> Callable[[str, str, str], Any]:
    """The function `check` of the file. InputError if there is none."""
    check, why = None, f"{path} has no function check"
    if not Path(path).is_file():
        why = f"there is no file {path}"
    elif Path(path).suffix not in (".py", ".pyc"):
        why = f"{path} is not a Python file"
    else:
        try:
            check = runpy.run_path(path, run_name="luthier_check").get("check")
        except Exception as error:
            why = f"{path}: {type(error).__name__}: {error}"
    if not callable(check):
        fix = "give a Python file with: def check(prompt: str, answer: str, reference: str) -> bool"
        raise InputError(f"evaluate.check: {why}", fix=fix)
    return check  # type: ignore[no-any-return]
