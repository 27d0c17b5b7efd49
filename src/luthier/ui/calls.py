"""What the workbench can be asked for. Each call takes what the page sends and returns what it shows."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.core.events import Progress
from luthier.data.prepared import SIDES
from luthier.pipeline.prepare import Encoding, on_this_machine, tokenize
from luthier.recipe.config import RunConfig
from luthier.ui.recipe import config_of

MOST = 100
"""Rows of one page of the table."""

Call = Callable[[Mapping[str, Any], Progress], Any]


@dataclass(slots=True)
class _Read:
    """The data that was read last."""

    key: str
    tokens: Encoding


_kept: list[_Read] = []


def _config(given: Mapping[str, Any]) -> RunConfig:
    return config_of(str(given["text"]))


def _read(config: RunConfig, progress: Progress) -> Encoding:
    """The rows as `train` would have them, without those that it would refuse; kept for the next page of them."""
    from luthier.data.checks.audit import lenient, read_all

    own = {"data": config.data, "task": config.task, "model": config.model, "length": config.train.max_length}
    key = repr(own)
    if not _kept or _kept[0].key != key:
        _kept.clear()
        unloaded = config.model_copy(update={"model": config.model.model_copy(update={"init": "random"})})
        progress.stage("reading data")
        data = read_all(unloaded.data, unloaded.task, progress)
        loose = unloaded.model_copy(update={"data": lenient(unloaded.data, data.task)})
        _kept.append(_Read(key, tokenize(loose, data, progress)))
    return _kept[0].tokens


def _check(given: Mapping[str, Any], progress: Progress) -> Any:
    """What `luthier check` finds."""
    from luthier.pipeline.check import check as check_data

    return check_data(_config(given), Path(str(given["place"])), progress=progress)


def _rows(given: Mapping[str, Any], progress: Progress) -> Any:
    """Some rows of one side with their loss masks: {total, rows}."""
    from luthier.data.checks.mask import mask

    tokens = _read(_config(given), progress)
    side = given["side"] if given["side"] in SIDES else "train"
    _, _, found = tokens.data.side(side)
    start, count = max(0, int(given["start"])), max(1, min(MOST, int(given["count"])))
    made = [
        asdict(mask(found[number], "", tokens.data, tokens.template))
        for number in range(start, min(len(found), start + count))
    ]
    return {"total": len(found), "rows": made}


def _plan(given: Mapping[str, Any], progress: Progress) -> Any:
    """Memory and time of the recipe on this machine, with keys changed by `changes`."""
    from luthier.pipeline.plan import plan as make

    return make(config_of(str(given["text"]), given.get("changes", {})), progress=progress)


def _choose(given: Mapping[str, Any], progress: Progress) -> Any:
    """The ranking of methods for the recipe."""
    from luthier.pipeline.choose import choose as rank
    from luthier.planning.advisor.question import ChooseOptions

    wanted = ChooseOptions.parse(variants=None, latency=None, memory=None, devices=None, time=None, rows=None)
    evidence = [Path(str(path)) for path in given.get("evidence", ())]
    return rank(_config(given), wanted, evidence=evidence, given=[], progress=progress)


def _form(given: Mapping[str, Any], progress: Progress) -> Any:
    """Every field of a recipe, with its default and help."""
    from luthier.ui.form import form as fields

    return fields()


def _ready(given: Mapping[str, Any], progress: Progress) -> Any:
    """Load what the other calls need."""
    progress.stage("loading libraries")
    import luthier.pipeline.check
    import luthier.planning.resolve

    assert luthier.pipeline.check and luthier.planning.resolve
    return {"device": on_this_machine(RunConfig.load(None, ["model=builtin"])).model.device}


CALLS: Mapping[str, Call] = {
    "check": _check,
    "rows": _rows,
    "plan": _plan,
    "choose": _choose,
    "form": _form,
    "ready": _ready,
}
"""Every call by its name."""
