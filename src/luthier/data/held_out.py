"""The held-out rows of a run, kept in its folder: a finished run is measured on these, whatever became of its data.

held_out.jsonl has a line of what is common to all rows, then a line per example with its tokens and labels.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from luthier.core.errors import InputError
from luthier.data.prepared import SIDES, Prepared
from luthier.data.rows import Encoded, Rows
from luthier.data.store import DataFolder, Examples, Refusals, Store
from luthier.rendering.example import Example, Message
from luthier.rendering.row import Row

STAND_INS = 100
"""Training examples that are kept where none is held out: the parity checks of exports replay some."""


def held_out_lines(data: Prepared) -> Iterator[dict[str, Any]]:
    """The lines of held_out.jsonl: of the test rows, else the validation rows."""
    side = data.held_out_side if data.side(data.held_out_side).rows else "train"
    _, examples, rows = data.side(side)
    labels = sorted({label for label in (*data.examples.labels, *examples.labels) if label is not None})
    yield {"side": side, "account": data.account(), "format_why": data.format_why, "labels": labels}
    for owner, numbers in groupby(range(len(rows)), key=rows.owner.__getitem__):
        if side == "train" and owner >= STAND_INS:
            return
        made = [rows[number] for number in numbers]
        tokens = [{"ids": row.ids, "labels": row.labels, "cut": row.cut} for row in made]
        yield {"example": {k: v for k, v in asdict(examples[owner]).items() if v or k == "label"}, "rows": tokens}


def restored(path: Path) -> Prepared:
    """The data of a run as far as measuring it needs: held-out examples with their tokens, labels and counts."""
    store, encoded = Store(), Encoded()
    try:
        with path.open(encoding="utf-8") as file:
            head = json.loads(file.readline())
            for owner, line in enumerate(file):
                kept = json.loads(line)
                example = _example(kept["example"])
                store.add(example)
                for row in kept["rows"]:
                    encoded.add(Row(row["ids"], row["labels"], example.where, row["cut"]), owner)
        none = dict.fromkeys(SIDES, Examples(store, ()))
        account = {**head["account"], "format_why": head["format_why"]}
        data = Prepared.restored(account, none, Refusals(), labels=tuple(head["labels"]))
        rows, examples = Rows(DataFolder(), head["side"]), Examples(store, range(len(store)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}", fix="restore it from a copy of the run") from error
    rows.extend(encoded, encoded.owner)
    rows.examples = examples
    data.fill(head["side"], examples, rows)
    return data


def _example(values: dict[str, Any]) -> Example:
    turns = {name: tuple(Message(**each) for each in values.get(name, ())) for name in ("messages", "rejected")}
    return Example(**{**values, **turns})
