"""Memory and time of a run, before any weights."""

from typing import Any

from luthier.core.events import SILENT, Progress
from luthier.pipeline.prepare import on_this_machine, plan_inputs, prepare_data, tokenize
from luthier.recipe.config import RunConfig


def plan(config: RunConfig, *, progress: Progress = SILENT) -> dict[str, Any]:
    """Memory and time of a run, from its data and the base's config.json: no weights are read, nothing is written.

    Also what the recipe leaves open, decided as `train` would, and what other settings would need.
    """
    from luthier.planning.resolve import alternatives, resolve

    config = on_this_machine(config)
    data = prepare_data(config, progress)
    unloaded = config.model_copy(update={"model": config.model.model_copy(update={"init": "random"})})
    tokens = tokenize(unloaded, data, progress)  # its weights need not be there
    progress.stage("planning memory and time")
    inputs = plan_inputs(config, tokens)
    resolved = resolve(inputs)
    plan = resolved.plan
    return {
        "model": config.model.path,
        "method": config.method.name,
        "steps": inputs.steps,
        **resolved.record(),
        "why": resolved.why,
        "room": plan and {"total": plan.target.memory, "free": plan.target.free},
        "fits": plan and plan.fits,
        "alternatives": [
            {"change": change, "bytes": made.peak, "seconds": made.seconds, "fits": made.fits}
            for change, made in (alternatives(inputs, resolved) if plan is not None else [])
        ],
    }
