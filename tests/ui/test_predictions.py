"""What base and tuned model said: filtered, searched and cut for the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.ui.predictions import MOST_TEXT, page_of, shortened


def row(number: int, before: str, after: str, loss: float) -> dict[str, Any]:
    sides = {
        side: {"label": "yes", "chosen": said, "said": said, "loss_sum": loss, "targets": 2}
        for side, said in (("base", before), ("tuned", after))
    }
    return {"where": f"rows.jsonl: line {number}", "text": f"question {number}", "answer": "yes", **sides}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [row(1, "yes", "no", 3), row(2, "no", "yes", 1), row(3, "no", "no", 9), row(4, "yes", "yes", 0.5)]
    rows[3]["text"] = "很好 " + "x" * (MOST_TEXT + 1)
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows))
    return file


def numbers(path: Path, **options: Any) -> list[int]:
    wanted = {"kind": "all", "search": "", "order": "file", "start": 0, "count": 10, **options}
    return [int(each["where"].split()[-1]) for each in page_of(path, **wanted)["rows"]]


def test_rows_are_filtered_searched_and_ordered(path: Path) -> None:
    assert numbers(path) == [1, 2, 3, 4]
    assert numbers(path, kind="worse") == [1] and numbers(path, kind="better") == [2]
    assert numbers(path, kind="wrong") == [1, 3]
    assert numbers(path, search="很好") == [4] and numbers(path, search="QUESTION 2") == [2]
    assert numbers(path, order="loss") == [3, 1, 2, 4]
    assert numbers(path, start=1, count=2) == [2, 3]


def test_counts_confusion_and_long_texts(path: Path) -> None:
    found = page_of(path, kind="all", search="", order="file", start=0, count=10)
    assert found["counts"] == {"all": 4, "better": 1, "worse": 1, "wrong": 2} and found["total"] == 4
    assert {each["side"] for each in found["confusion"]} == {"base", "tuned"}
    assert found["rows"][3]["cut"] and len(found["rows"][3]["text"]) == MOST_TEXT
    assert found["rows"][0]["tuned"] == {"said": "no", "label": "", "right": False, "loss": 1.5}


def test_a_run_without_predictions_has_none(tmp_path: Path) -> None:
    found = page_of(tmp_path / "none.jsonl", kind="all", search="", order="file", start=0, count=10)
    assert (found["total"], found["rows"], found["confusion"]) == (0, [], [])


def test_texts_are_cut_wherever_they_stand() -> None:
    long = "x" * (MOST_TEXT + 1)
    cut = f"{long[:-1]} …"
    assert shortened({"a": [long, {long: (1, None, True)}], "b": "short"}) == {
        "a": [cut, {cut: [1, None, True]}],
        "b": "short",
    }
