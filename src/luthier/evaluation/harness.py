"""EleutherAI's lm-evaluation-harness on a run: the tuned model and its base on the same tasks.

No weights are written or downloaded; what a task downloads is up to the harness and the task. A difference is within
noise if its 95 % interval, 1.96 sqrt(se_base^2 + se_tuned^2) on either side, contains zero: it is wider than a paired
one would be, because the harness gives standard errors per model, not per pair.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError, did_you_mean
from luthier.core.events import Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def measure_harness(
    tuned: "nn.Module",
    base: "AbstractContextManager[nn.Module] | None",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[str],
    folder: Path | None,
    limit: int | None,
    batch_size: int,
    max_length: int,
    progress: Progress,
) -> dict[str, Any]:
    """{tasks, limit, lm_eval, scores: {task: {metric: {base, tuned, difference, noise, ...}}}}.

    InputError for an unknown task, and for a classifier, which the harness cannot evaluate.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    if not hasattr(tuned, "generate") or tuned.get_output_embeddings() is None:  # type: ignore[operator]
        raise InputError("the run is a classifier: the harness evaluates language models", fix="luthier evaluate RUN")
    if folder is not None and not folder.is_dir():
        raise InputError(f"--harness-path: there is no folder {folder}", fix="give the folder of your task files")
    manager = TaskManager(include_path=None if folder is None else str(folder))
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        why = f"lm-evaluation-harness has no task {unknown[0]!r}{did_you_mean(unknown[0], manager.all_tasks)}"
        raise InputError(why, fix="--harness-path=DIR for tasks of your own, or one that `lm-eval ls tasks` shows")
    options = {"task_manager": manager, "limit": limit, "log_samples": False, "bootstrap_iters": 1000}

    def measured(model: "nn.Module", who: str) -> Any:
        progress.stage(f"evaluating the {who} with lm-evaluation-harness: {', '.join(tasks)}")
        wrapped: Any = HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)
        found = simple_evaluate(wrapped, tasks=list(tasks), **options)
        return found["results"] if found else {}

    after, before = measured(tuned, "tuned model"), {}
    if base is not None:
        with base as model:
            before = measured(model, "base")
    scores = {task: _scores(before.get(task, {}), metrics) for task, metrics in after.items()}
    return {"tasks": list(tasks), "limit": limit, "lm_eval": metadata.version("lm_eval"), "scores": scores}


def _scores(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """{metric: {base, tuned, ...}} of one task; the harness writes `acc,none` and `acc_stderr,none`."""
    made = {}
    for key, value in after.items():
        name, _, how = key.partition(",")
        if not isinstance(value, int | float) or not how or name.endswith("_stderr"):
            continue
        base, given = before.get(key), [side.get(f"{name}_stderr,{how}") for side in (before, after)]
        errors = [float(x) if isinstance(x, int | float) and math.isfinite(x) else None for x in given]
        score: dict[str, Any] = {"base": base, "tuned": value, "tuned_error": errors[1], "base_error": errors[0]}
        if isinstance(base, int | float):
            score["difference"] = value - base
            if None not in errors:
                half = 1.96 * math.hypot(*(each or 0.0 for each in errors))
                score |= {"low": score["difference"] - half, "high": score["difference"] + half}
                score["noise"] = abs(score["difference"]) <= half
        made[name if how == "none" else f"{name} ({how})"] = score
    return made
