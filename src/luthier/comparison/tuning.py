"""A small search for each method's learning rate and size, on rows that the final score never sees.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), two rounds: three rates, a third, one and three
times the method's own, with few steps each; then the better two with twice the steps, where the best rate is tried with
half and twice the size as well. Each try is trained from the start, because the schedule of a rate depends on its
steps. The tries are compared by the loss on a tenth of the TRAINING rows, which they do not train on.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.comparison import workers
from luthier.comparison.candidates import Variant
from luthier.comparison.runner import CompareTask, Context, run_all, train_variant
from luthier.core.errors import InputError, Stopped
from luthier.core.files import read_object, write_json
from luthier.data.prepared import Prepared, Rows, SplitCounts
from luthier.data.store import DataFolder, Examples
from luthier.pipeline.prepare import SharedInputs
from luthier.runs.folder import RunFolder

UNITS = 11
"""Three tries of one unit of steps, four of two."""
FEWEST = 4
"""Fewest steps of a unit."""
SIZES = ("rank", "size", "length")
"""Fields that say how much a method adds; UniPELT's first one is its LoRA's."""
MOST = 200
"""Most held-out rows that a try is measured on."""


def steps_of(total: int) -> tuple[int, int]:
    """(steps of a unit, steps that are left for the run itself): the search takes half. InputError where too few."""
    unit = total // 2 // UNITS
    if unit < FEWEST:
        raise InputError(
            f"--tune takes half of a method's {total} steps for {UNITS} units, {unit} steps each, which is too few",
            fix=f"at least {2 * UNITS * FEWEST} steps a method: a larger --budget or --tokens, or no --tune",
        )
    return unit, total - UNITS * unit


def split_for_tuning(data: Prepared) -> Prepared:
    """Split the training rows: every tenth example is held out, the others are trained on."""
    count = len(data.examples)
    held = list(range(0, count, 10))[:MOST]
    examples, rows = _subset(data, sorted(set(range(count)) - set(held)), "train")
    held_examples, held_rows = _subset(data, held, "validation")
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


def _subset(data: Prepared, numbers: list[int], side: str) -> tuple[Examples, Rows]:
    place = {number: new for new, number in enumerate(numbers)}
    examples = data.examples.take(numbers)
    rows = ((place[owner], data.rows[row]) for row, owner in enumerate(data.rows.owner) if owner in place)
    return examples, Rows.of(side, examples, rows)


def search_inputs(inputs: SharedInputs) -> SharedInputs:
    """The same base on the training rows alone; nothing of the base has been measured on them."""
    tokens = replace(inputs.tokens, data=split_for_tuning(inputs.tokens.data))
    return replace(inputs, tokens=tokens, before=None, finished=lambda loaded, run: None)


def search(variant: Variant, inputs: SharedInputs, unit: int, folder: Path, send: workers.Send) -> dict[str, Any]:
    """{lr, size, field, tries}: what the variant's runs are to take; `inputs` are those of `search_inputs`.

    A try that fails counts as the worst; where all do, the method's own values stay.
    """
    tries: list[dict[str, Any]] = []
    method = variant.config.method
    lr = variant.config.train.lr or method.learning_rate(inputs.base(variant.config))
    field = next((name for name in SIZES if isinstance(getattr(method, name, None), int)), "")
    size = getattr(method, field) if field else None

    def loss(rate: float, width: int | None, steps: int) -> float:
        place = folder / "search" / f"{variant.name}-{len(tries)}"
        found = float("inf")
        try:
            config = _with_found(variant, {"lr": rate, "size": width, "field": field}).config
            train = config.train.model_copy(update={"steps": steps, "keep_best": False})
            evaluate = config.evaluate.model_copy(update={"before": False, "generate": 0})
            config = config.model_copy(update={"run": str(place), "train": train, "evaluate": evaluate})
            found = min(found, float(train_variant(config, inputs, send)["tuned"]["loss"]["value"]))  # inf for NaN
        except Stopped:
            raise
        except Exception:  # a size that the model has no room for, a rate that diverges
            pass
        shutil.rmtree(RunFolder(place).path, ignore_errors=True)
        tries.append({"lr": rate, "size": width, "steps": steps, "loss": found if found < float("inf") else None})
        return found

    first = {rate: loss(rate, size, unit) for rate in (lr / 3, lr, lr * 3)}
    better = sorted(first, key=first.__getitem__)[:2]
    second = {(rate, size): loss(rate, size, 2 * unit) for rate in better}
    if size is not None:
        for width in (max(1, size // 2), 2 * size):
            second[better[0], width] = loss(better[0], width, 2 * unit)
    best = min(second, key=second.__getitem__)
    rate, width = best if second[best] < float("inf") else (lr, size)
    return {"lr": float(f"{rate:.3g}"), "size": width, "field": field, "tries": tries}


def tune(context: Context) -> None:
    """Search learning rate and size of each variant; those that were found before stay."""
    unit, context.steps = steps_of(context.steps)
    waiting = []
    for variant in context.runnable:
        kept = context.folder / "search" / f"{variant.name}.json"
        if kept.is_file():
            context.tuned[variant.name] = read_object(kept, f"delete it to repeat the search for {variant.name}")
        else:
            waiting.append(variant)
    if waiting:
        context.progress.stage(f"searching rate and size of {len(waiting)} methods, {UNITS * unit} steps each")
        tasks = [CompareTask("search", one.name, one.config, context.folder, unit) for one in waiting]
        names = [variant.name for variant in waiting]
        for end in run_all(context, tasks, names):
            name, found = names[end.job], end.value
            if end.kind == "done":
                write_json(context.folder / "search" / f"{name}.json", found)
                context.tuned[name] = found
                size = f", {found['field']} {found['size']}" if found["field"] else ""
                context.progress.said(f"{name}: rate {found['lr']:g}{size}")
            else:
                context.progress.warn(f"{name}: the search failed, its defaults stay: {found}")
    context.variants = [_with_found(one, context.tuned.get(one.name)) for one in context.variants]


def _with_found(variant: Variant, found: dict[str, Any] | None) -> Variant:
    """The variant with what the search found for it."""
    if not found:
        return variant
    config, method = variant.config, variant.config.method
    if found["field"]:
        method = method.model_validate(method.model_dump(mode="json") | {found["field"]: found["size"]})
    train = config.train.model_copy(update={"lr": found["lr"]})
    return replace(variant, config=config.model_copy(update={"method": method, "train": train}))
