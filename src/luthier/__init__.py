"""Luthier fine-tunes language models: from a data file and a base model to a measured, usable model."""

import importlib
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError, LuthierError, Stopped, Unproved
from luthier.core.events import Progress
from luthier.core.import_hook import follow_peft
from luthier.core.version import __version__

if TYPE_CHECKING:
    from luthier.api.calls import check, choose, compare, load, plan, prepare, train
    from luthier.api.prepared import PreparedRun
    from luthier.api.results import Choice, Comparison, DataCheck, RunPlan
    from luthier.api.run import Exported, Run
    from luthier.api.scores import Interval, MetricScore, Scores
    from luthier.api.show import Page
    from luthier.training.step import Gradient

_PLACES = {
    **dict.fromkeys(("check", "choose", "compare", "load", "plan", "prepare", "train"), "luthier.api.calls"),
    **dict.fromkeys(("Choice", "Comparison", "DataCheck", "RunPlan"), "luthier.api.results"),
    **dict.fromkeys(("Exported", "Run"), "luthier.api.run"),
    **dict.fromkeys(("Interval", "MetricScore", "Scores"), "luthier.api.scores"),
    **{"Gradient": "luthier.training.step", "Page": "luthier.api.show", "PreparedRun": "luthier.api.prepared"},
}
"""Name -> the module that has it, imported when the name is first used: `import luthier` takes a moment."""

__all__ = [
    "Choice",
    "Comparison",
    "DataCheck",
    "Exported",
    "Gradient",
    "InputError",
    "Interval",
    "LuthierError",
    "MetricScore",
    "Page",
    "PreparedRun",
    "Progress",
    "Run",
    "RunPlan",
    "Scores",
    "Stopped",
    "Unproved",
    "__version__",
    "check",
    "choose",
    "compare",
    "load",
    "plan",
    "prepare",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what a name stands for. AttributeError for another name."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(_PLACES[name]), name)
    return found


def __dir__() -> list[str]:
    """Every name that the package offers."""
    return sorted(__all__)


follow_peft("luthier.methods.layers")
