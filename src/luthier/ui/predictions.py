"""What base and tuned model said on the held-out rows: filtered, searched, sorted, and page by page."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.reports.run_report import confusion, loss_of, spoken

MOST_TEXT = 4_000
"""Characters of a text that the page shows; the file has the whole of it."""
MOST = 200
"""Rows of a page."""
KINDS = ("all", "better", "worse", "wrong")


def shortened(value: Any) -> Any:
    """The same with every text cut to what the page shows, at any depth and in keys too."""
    if isinstance(value, str):
        return value if len(value) <= MOST_TEXT else f"{value[:MOST_TEXT]} …"
    if isinstance(value, Mapping):
        return {shortened(key): shortened(each) for key, each in value.items()}
    return [shortened(each) for each in value] if isinstance(value, list | tuple) else value


def page_of(path: Path, *, kind: str, search: str, order: str, start: int, count: int) -> dict[str, Any]:
    """{total, rows, counts, confusion} of a predictions.jsonl; `order` is file, loss or change."""
    rows = [_shown(row) for row in _lines(path)]
    counts = {each: sum(_fits(row, each) for row in rows) for each in KINDS}
    wanted = search.casefold()
    found = [row for row in rows if _fits(row, kind) and (not wanted or wanted in row["words"])]
    if order == "loss":
        found.sort(key=lambda row: -(math.inf if row["loss"] is None else row["loss"]))
    elif order == "change":
        found.sort(key=lambda row: -abs(row["change"]))
    start, count = max(0, start), max(1, min(MOST, count))
    page = [{key: value for key, value in row.items() if key != "words"} for row in found[start : start + count]]
    return {"total": len(found), "rows": page, "counts": counts, "confusion": confusion(list(_lines(path)))}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    sides = {side: _side(row.get(side) or {}) for side in ("base", "tuned")}
    losses = [sides[side]["loss"] for side in ("base", "tuned")]
    change = losses[1] - losses[0] if None not in losses else 0.0
    right = [sides[side]["right"] for side in ("base", "tuned")]
    kind = "" if None in right or right[0] == right[1] else "better" if right[1] else "worse"
    texts = [str(row.get("text", "")), str(row.get("answer", "")), sides["base"]["said"], sides["tuned"]["said"]]
    return {
        "where": str(row.get("where", "")),
        "text": texts[0][:MOST_TEXT],
        "answer": texts[1][:MOST_TEXT],
        "cut": max(map(len, texts)) > MOST_TEXT,
        "base": {**sides["base"], "said": texts[2][:MOST_TEXT]},
        "tuned": {**sides["tuned"], "said": texts[3][:MOST_TEXT]},
        "loss": loss_of(row) if row.get("tuned") else None,
        "change": change,
        "kind": kind,
        "words": "\n".join(texts).casefold(),
    }


def _side(record: Mapping[str, Any]) -> dict[str, Any]:
    """What one model said, the loss of the right answer, and whether it was right, where that is known."""
    right: bool | None = None
    if "chosen" in record:
        right = record["chosen"] == record["label"]
    elif "exact" in record:
        right = bool(record["exact"])
    loss, targets = record.get("loss_sum"), record.get("targets") or 1
    said = spoken(record) if record else ""
    label = str(record.get("chosen", ""))
    own = loss / targets if loss is not None else None
    return {"said": said, "label": label if label != said else "", "right": right, "loss": own}


def _fits(row: Mapping[str, Any], kind: str) -> bool:
    return kind == "all" or row["kind"] == kind or (kind == "wrong" and row["tuned"]["right"] is False)
