"""A small search for each method's learning rate and size, on rows that the final score never sees.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), two rounds: three rates, a third, one and three
times the method's own, with few steps each; then the better two with twice the steps, where the best rate is tried with
half and twice the size as well. Each try is trained anew, for the schedule of a rate depends on its steps. Judged is
the loss on a tenth of the TRAINING rows, which the tries do not train on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.comparison import workers
from luthier.comparison.candidates import Arm
from luthier.comparison.runner import Shared, train, work
from luthier.core.errors import InputError, Stopped
from luthier.core.files import read_object, write_json
from luthier.data.prepared import Prepared, SplitCounts
from luthier.data.rows import Encoded, Rows
from luthier.data.store import DataFolder, Examples
from luthier.methods.base import Method
from luthier.runs.folder import RunFolder

UNITS = 11
"""Three tries of one unit of steps, four of two."""
FEWEST = 4
"""Steps of a unit: fewer tell nothing."""
SIZES = ("rank", "size", "length")
"""Fields that say how much a method adds; UniPELT's first one is its LoRA's."""
MOST = 200
"""Held-out rows that a try is judged on."""


def steps_of(total: int) -> tuple[int, int]:
    """(steps of a unit, steps that are left for the run itself): the search takes half. InputError where it cannot."""
    unit = total // 2 // UNITS
    if unit < FEWEST:
        raise InputError(
            f"--tune takes half of a method's {total} steps for {UNITS} units, {unit} steps each, which tells nothing",
            fix=f"at least {2 * UNITS * FEWEST} steps a method: a larger --budget or --tokens, or no --tune",
        )
    return unit, total - UNITS * unit


def apart(data: Prepared) -> Prepared:
    """The training rows alone: every tenth example held out, the others to train on."""
    count = len(data.examples)
    held = list(range(0, count, 10))[:MOST]
    rest = sorted(set(range(count)) - set(held))
    examples, rows = _some(data, rest, "train")
    held_examples, held_rows = _some(data, held, "validation")
    return replace(
        data,
        examples=examples,
        rows=rows,
        validation_examples=held_examples,
        validation_rows=held_rows,
        test=SplitCounts(),
        test_examples=Examples.of([]),
        test_rows=Rows(DataFolder(), "test"),
        train=replace(data.train),
        validation=replace(data.validation),
    )


def _some(data: Prepared, numbers: list[int], side: str) -> tuple[Examples, Rows]:
    place = {number: new for new, number in enumerate(numbers)}
    made = Encoded()
    for row, owner in enumerate(data.rows.owner):
        if owner in place:
            made.add(data.rows[row], place[owner])
    rows = Rows(DataFolder(), side)
    rows.extend(made, made.owner)
    rows.examples = data.examples.take(numbers)
    return rows.examples, rows


def size_of(method: Method) -> str:
    """The field that says how much the method adds; empty where it has none."""
    return next((name for name in SIZES if isinstance(getattr(method, name, None), int)), "")


def search(arm: Arm, lr: float, unit: int, folder: Path, tried: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """{lr, size, tries}: what the method's runs are to take. `tried` makes one try and returns its result.

    A try that fails counts as the worst; where all do, the method's own values stay.
    """
    tries: list[dict[str, Any]] = []
    name = size_of(arm.config.method)
    size = getattr(arm.config.method, name) if name else None

    def loss(rate: float, width: int | None, steps: int) -> float:
        method = arm.config.method.spec() | ({name: width} if name else {})
        place = folder / "search" / f"{arm.name}-{len(tries)}"
        try:
            changed = type(arm.config.method).model_validate({k: v for k, v in method.items() if k != "name"})
            config = arm.config.model_copy(
                update={
                    "run": str(place),
                    "method": changed,
                    "train": arm.config.train.model_copy(update={"lr": rate, "steps": steps, "keep_best": False}),
                    "evaluate": arm.config.evaluate.model_copy(update={"before": False, "generate": 0}),
                }
            )
            measured = float(tried(config)["tuned"]["loss"]["value"])
            found = measured if measured < float("inf") else float("inf")  # also of NaN
        except Stopped:
            raise
        except Exception:  # a size that the model has no room for, a rate that diverges: the worst there is
            found = float("inf")
        shutil.rmtree(RunFolder(place).path, ignore_errors=True)
        tries.append({"lr": rate, "size": width, "steps": steps, "loss": found if found < float("inf") else None})
        return found

    first = {rate: loss(rate, size, unit) for rate in (lr / 3, lr, lr * 3)}
    better = sorted(first, key=first.__getitem__)[:2]
    second = {(rate, size): loss(rate, size, 2 * unit) for rate in better}
    if size is not None:
        for width in (max(1, size // 2), 2 * size):
            second[better[0], width] = loss(better[0], width, 2 * unit)
    rate, width = min(second, key=second.__getitem__)
    if second[rate, width] == float("inf"):
        rate, width = lr, size
    return {"lr": float(f"{rate:.3g}"), "size": width, "field": name, "tries": tries}


def tune(shared: Shared) -> None:
    """Rate and size of each method; those that were found before stay."""
    unit, shared.steps = steps_of(shared.steps)
    shared.chosen = {}
    waiting = []
    for arm in (arm for arm in shared.arms if not arm.reason):
        kept = shared.folder / "search" / f"{arm.name}.json"
        if kept.is_file():
            shared.chosen[arm.name] = read_object(kept, f"delete it: the search for {arm.name} is done again")
        else:
            waiting.append(arm)
    if not waiting:
        return
    shared.progress.stage(f"searching rate and size of {len(waiting)} methods, {UNITS * unit} steps each")
    given = replace(shared.given, data=apart(shared.given.data), before=None, finished=lambda loaded, run: None)

    def job(arm: Arm) -> workers.Job:
        def found(send: workers.Send) -> dict[str, Any]:
            lr = arm.config.train.lr or arm.config.method.learning_rate(
                given.load(arm.config, RunFolder(shared.folder)).model
            )
            return search(arm, lr, unit, shared.folder, lambda config: train(config, given, send))

        return found

    for end, arm in work(shared, [job(arm) for arm in waiting], waiting, lambda arm: arm.name):
        if end.kind == "done":
            write_json(shared.folder / "search" / f"{arm.name}.json", end.value)
            shared.chosen[arm.name] = end.value
            size = f", {end.value['field']} {end.value['size']}" if end.value["field"] else ""
            shared.progress.said(f"{arm.name}: rate {end.value['lr']:g}{size}")
        else:
            shared.progress.warn(f"{arm.name}: no search, its own values stay: {end.value}")
