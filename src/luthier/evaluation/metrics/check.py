"""A pass/fail function of yours: `evaluate.check: FILE.py` with check(prompt, answer, reference) -> bool, or 0 to 1.

`prompt` is the last user message, `answer` what the model said, `reference` what the data says. The file is run as it
stands, in this process and with your rights, once per run. An exception in it counts as not passed, and how many there
were, and the first, are told.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.core.errors import InputError
from luthier.evaluation.metrics.base import Evaluation, MetricFunction, mean_of
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.records.generate import answered, asks, references_of

FIX = "give a Python file with: def check(prompt: str, answer: str, reference: str) -> bool"


class Check(Evaluation):
    """Share of answers that pass a function of yours."""

    def applies(self, subject: EvalContext) -> bool:
        return asks(subject) and subject.settings.check is not None

    def measure(self, subject: EvalContext) -> list[Record]:
        check = load_check(str(subject.settings.check))
        made: list[Record] = []
        errors: list[str] = []
        for example, record in zip(subject.examples, answered(subject), strict=True):
            if not record:
                made.append({})
                continue
            prompt = next((m.content for m in reversed(example.messages[:-1]) if m.role == "user"), "")
            try:
                # With several right answers the best one counts.
                each = [_share(check(prompt, record["said"], reference)) for reference in references_of(record)]
                made.append({"passed": max(each)})
            except Exception as error:  # the user's code may raise anything, and one answer is not worth the run
                errors.append(f"{example.where}: {type(error).__name__}: {error}")
                made.append({"passed": 0.0, "check_error": errors[-1]})
        if errors:
            subject.counts["errors in check"] = len(errors)
            subject.progress.warn(f"evaluate.check raised {len(errors)} times, which counts as failed: {errors[0]}")
        return made

    def metrics(self) -> dict[str, MetricFunction]:
        return {"pass_rate": mean_of("passed")}


def _share(value: Any) -> float:
    """The verdict as a number from 0 to 1; TypeError or ValueError for anything else."""
    share = float(value)
    if not 0 <= share <= 1:
        raise ValueError(f"check returned {value!r}, which is no bool and no share from 0 to 1")
    return share


def load_check(path: str) -> Callable[[str, str, str], Any]:
    """The function `check` of the file. InputError where there is none."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"evaluate.check: there is no file {path}", fix=FIX)
    spec = importlib.util.spec_from_file_location("luthier_check", file)
    if spec is None or spec.loader is None:
        raise InputError(f"evaluate.check: {path} is no Python file", fix=FIX)
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"evaluate.check: {path}: {type(error).__name__}: {error}", fix=FIX) from error
    finally:
        sys.dont_write_bytecode = writes
    check = getattr(module, "check", None)
    if not callable(check):
        raise InputError(f"evaluate.check: {path} has no function check", fix=FIX)
    return check  # type: ignore[no-any-return]
