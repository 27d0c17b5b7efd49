"""What the page asks of the data: a check, and the rows with their loss masks page by page."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from luthier.core.events import SILENT, Progress
from luthier.data.checks import audit
from luthier.recipe.config import RunConfig
from luthier.ui import calls


class Stages(Progress):
    """What was done, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        self.said.append(text)


def reviews(path: Path, count: int) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion"])
        writer.writerows([f"Is number {number} even?", "yes" if number % 2 == 0 else "no"] for number in range(count))
    return path


def test_pages_of_rows_are_those_of_the_check_and_nothing_is_read_twice(tmp_path: Path) -> None:
    path = reviews(tmp_path / "rows.csv", 50)
    given: dict[str, Any] = {"text": f"data: {{path: '{path}', validation: 0.1}}\n", "place": str(tmp_path / "check")}
    progress = Stages()
    found = calls.CALLS["check"](given, progress)
    assert found["account"]["train"]["kept"] == 45 and "reading data" in progress.said
    progress = Stages()
    page = calls.CALLS["rows"]({**given, "side": "train", "start": 40, "count": 20}, progress)
    assert page["total"] == 45 and len(page["rows"]) == 5 and progress.said == []
    last = calls.CALLS["rows"]({**given, "side": "train", "start": 44, "count": 1}, progress)
    assert last["rows"] == page["rows"][-1:] and last["rows"][0]["learned"] > 0
    reviews(path, 60)  # edited while the page is open
    edited = calls.CALLS["rows"]({**given, "side": "validation", "start": 0, "count": 20}, progress)
    assert edited["total"] == 6 and "reading data" in progress.said


def test_a_check_reads_again_only_what_could_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bool] = []
    again = audit.load
    monkeypatch.setattr(audit, "load", lambda *given, **named: read.append(True) or again(*given, **named))
    path = reviews(tmp_path / "rows.csv", 40)
    with path.open("a", encoding="utf-8") as file:
        file.write('"",no\n')

    def stops(*settings: str) -> tuple[bool, int]:
        read.clear()
        found = calls.checked_rows(RunConfig.load(None, [f"data.path={path}", "data.cache=false", *settings]), SILENT)
        return found.audit.stops, len(read)

    assert stops() == (True, 2)
    assert stops("data.on_bad_row=skip") == (False, 1)
    assert stops("data.on_bad_row=skip", "train.max_length=18") == (True, 2)
    assert stops("data.on_bad_row=skip", "train.max_length=18", "data.on_long_row=truncate_prompt") == (False, 1)
