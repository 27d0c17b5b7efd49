"""benchmarks/methods: the search of a learning rate, and the tables of SmolLM2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.methods import field, run


def climb(file: Path, losses: dict[float, float], default: float) -> tuple[dict[float, float], list[float | None]]:
    """What a search finds where a run has the loss of its rate, or of the nearest one that is given; and what it ran."""
    ran: list[float | None] = []

    def measured(lr: float | None) -> dict[str, Any]:
        ran.append(lr)
        rate = lr or default
        near = min(losses, key=lambda each: abs(each - rate))
        line = {"task": "t", "arm": "a", "seed": 0, "sweep": True, "asked_lr": lr}
        return line | ({"refused": "no"} if losses[near] < 0 else {"lr": rate, "loss": losses[near]})

    return run.search(file, "t", "a", measured), ran


def test_a_rate_is_searched_uphill_and_downhill_and_a_stopped_search_repeats_nothing(tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    valley = {0.0001: 2.0, 0.0003: 1.0, 0.0009: 1.5, 0.0027: 3.0, 0.0081: 9.0}
    found, ran = climb(file, valley, 0.0027)
    assert ran == [None, 0.0081, 0.0009, 0.0003, 0.0001] and run.best(found) == 0.0003
    assert climb(file, valley, 0.0027) == (found, [])
    file.write_text("\n".join(file.read_text().splitlines()[:3]) + "\n")
    assert climb(file, valley, 0.0027) == (found, [0.0003, 0.0001])


def test_a_search_ends_where_a_rate_is_refused_and_after_eight_rates(tmp_path: Path) -> None:
    assert climb(tmp_path / "one", {1.0: -1.0}, 1.0) == ({}, [None]) and run.best({}) is None
    found, ran = climb(tmp_path / "two", {1.0: 2.0, 3.0: -1.0, 0.333: 4.0}, 1.0)
    assert found == {1.0: 2.0, 0.333: 4.0} and ran == [None, 3.0, 0.333]
    steps = {float(f"{3.0**k:.3g}"): -float(k) + 20 for k in range(12)}
    assert len(climb(tmp_path / "three", steps, 1.0)[0]) == 8


@pytest.mark.parametrize("task", ["sst2", "reviews"])
def test_the_rule_of_the_search_is_that_of_the_recorded_lines(task: str) -> None:
    """It asks for no rate that was not tried, and all that were tried were asked for; OFT's one line was kept by hand."""
    file = run.HERE / "sweep.jsonl"
    lines = [line for line in run.read(file) if line["task"] == task and line["arm"] != "oft"]
    nothing: dict[float | None, dict[str, Any]] = {}
    for arm in {line["arm"] for line in lines}:
        found = run.search(file, task, arm, nothing.__getitem__)
        assert set(found) == {line["lr"] for line in lines if line["arm"] == arm}


def test_the_rows_that_count_are_kept_in_their_order() -> None:
    records = [{"chosen": "a", "label": "a", "exact": 0}, {"chosen": "b", "label": "a"}, {"chosen": "a", "label": "a"}]
    assert field.right(records) == {"accuracy": "101", "exact_match": "0"} and field.right([{}]) == {}
