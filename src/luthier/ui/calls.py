"""What the workbench can be asked for. Each call takes what the page sends and returns what it shows."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luthier.core.events import Progress
from luthier.data.prepared import SIDES
from luthier.data.settings import DataConfig
from luthier.pipeline.check import Checked, checked_rows, report
from luthier.pipeline.prepare import on_this_machine
from luthier.recipe.config import RunConfig
from luthier.ui.index import file_stamp
from luthier.ui.recipe import config_of

MOST = 100
"""Rows of one page of the table."""

Call = Callable[[Mapping[str, Any], Progress], Any]

_kept: dict[str, Checked] = {}
"""The data that was checked last, by what decides about its rows: one entry at most."""


def _config(given: Mapping[str, Any]) -> RunConfig:
    return config_of(str(given["text"]))


def _checked(config: RunConfig, progress: Progress) -> Checked:
    """The rows as `train` would have them, without those that it would refuse; kept for the pages of them."""
    length, positions = config.train.max_length, config.method.positions
    key = repr((config.data, config.task, config.model, length, positions, list(_stamps(config.data))))
    if key not in _kept:
        _kept.clear()  # before the next is read: both may be large
        _kept[key] = checked_rows(config, progress)
    return _kept[key]


def _stamps(data: DataConfig) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """Sizes and times of the files that the rows come from, so that an edited file is read again."""
    for name in (data.path, *(each.path for each in data.mix), data.validation, data.test):
        place = Path(name) if name and isinstance(name, str) else None
        with suppress(OSError):  # a name that no file can have
            for file in (place, *place.glob("*"), *place.glob("*/*")) if place else ():
                yield str(file), file_stamp(file)


def _check(given: Mapping[str, Any], progress: Progress) -> Any:
    """What `luthier check` finds."""
    config = _config(given)
    return report(config, _checked(config, progress), Path(str(given["place"])))


def _rows(given: Mapping[str, Any], progress: Progress) -> Any:
    """Some rows of one side with their loss masks: {total, rows}."""
    from luthier.data.checks.mask import mask

    shown = _checked(_config(given), progress)
    side = given["side"] if given["side"] in SIDES else "train"
    _, _, found = shown.data.side(side)
    start, count = max(0, int(given["start"])), max(1, min(MOST, int(given["count"])))
    made = [
        asdict(mask(found[number], "", shown.data, shown.template))
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
