"""benchmarks/methods: the search of a learning rate, and the tables of SmolLM2."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import variance
from typing import Any

import pytest
from benchmarks.methods import field, field_table, rates, run
from benchmarks.methods.evidence import VERSIONS

from luthier.comparison.significance import draws
from luthier.evaluation.metrics.base import mean_of

OF_RUNS = ("threads", "python", *VERSIONS)


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


def lines_of(arm: str, *rights: str, kept: bool = True, task: str = "smollm2-sst2") -> list[dict[str, Any]]:
    """Made-up lines of results: one for each seed, in which these rows are right."""
    made = []
    for seed, right in enumerate(rights):
        value = right.count("1") / len(right)
        line = {"task": task, "arm": arm, "seed": seed, "lr": 0.00117, "accuracy": value, "exact_match": value}
        line |= {"accuracy_low": value - 0.1, "accuracy_high": value + 0.1, "base_accuracy": 0.5, "steps": 30}
        line |= {"rows": 480, "held_out": len(right), "tokens": 21392, "trainable": 4884480, "bytes": 19_593_064}
        line |= {"memory": 2_524_676_096, "train_seconds": 100.0 + 50 * (arm == "dora"), "latency": {"token": 1.234}}
        line |= {"forgetting": {"all": {"base": 0.9124, "tuned": 0.95}}, "threads": 1, "python": "3.11"}
        line |= dict.fromkeys(VERSIONS, "1")
        made.append(line | ({"right": {"accuracy": right}} if kept else {}))
    return made


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, str]]]:
    """The tables of made-up lines: a dict for each row, the head of its table -> its cell."""
    file = tmp_path / "results.jsonl"
    monkeypatch.setattr(field_table, "RESULTS", file)
    monkeypatch.setattr(field_table, "OTHER_RATES", tmp_path / "other_rates.jsonl")
    (tmp_path / "other_rates.jsonl").touch()

    def rows(*lines: dict[str, Any], page: Path = field_table.PAGE) -> list[dict[str, str]]:
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (made,) = (each.text for each in field_table.tables() if each.page == page)
        found: list[dict[str, str]] = []
        heads: list[str] = []
        for text in made.splitlines():
            cells = [cell.strip() for cell in text.strip("|").split("|")] if text.startswith("|") else []
            if cells and heads and not cells[0].startswith("---"):
                found.append(dict(zip(heads, cells, strict=True)))
            heads = (heads or cells) if cells else []
        return found

    return rows


def test_methods_are_compared_on_the_same_rows_and_seeds(table: Callable[..., list[dict[str, str]]]) -> None:
    lora = lines_of("lora", "1110" * 25, "1100" * 25, "1110" * 25)
    better = lines_of("dora", "1111" * 25, "1110" * 25, "1111" * 25)
    base, first, second, *costs = table(*lora, *better)
    assert base == {
        "method": "the base",
        "learning rate": "",
        "default": "",
        "accuracy, %": "50.0",
        "less LoRA's": "",
        "bits per byte of other texts": "0.912",
    }
    assert (first["method"], second["method"], second["less LoRA's"]) == ("dora", "lora", "")
    assert first["learning rate"] == "0.00117" and first["bits per byte of other texts"] == "0.950"
    drawn = draws(mean_of("r"), [[{"r": int(one)} for one in line["right"]["accuracy"]] for line in lora])
    low, high = (100 * side for side in drawn.interval)
    assert second["accuracy, %"] == f"66.7 ({low:.1f} to {high:.1f})"
    # One row in four is what dora has right and lora has not, whatever the seed: with seeds alike the rows alone vary.
    value, low, high = map(float, re.findall(r"[\d.]+", first["less LoRA's"]))
    assert value == 25.0 and 15 < low < 20 and 30 < high < 35
    assert [row["method"] for row in costs] == ["dora", "lora"] and costs[0]["LoRA = 1"] == "1.50"
    assert costs[1]["trained"] == "4.884 M" and costs[1]["memory"] == "2.52 GB" and costs[1]["file"] == "19.6 MB"
    assert costs[1]["next, base = 1"] == "1.23" and "row, base = 1" not in costs[1]


def test_what_is_not_whole_or_not_kept_says_so(table: Callable[..., list[dict[str, str]]]) -> None:
    lora = lines_of("lora", "1110" * 25, "1100" * 25, "1110" * 25, kept=False)
    one = lines_of("ia3", "1000" * 25)
    refused = {"task": "smollm2-sst2", "arm": "vera", "seed": 0, "refused": "no"} | {k: lora[0][k] for k in OF_RUNS}
    _, first, second, last, *_ = table(*lora, *one, refused)
    assert "less LoRA's" not in first, "no rows to pair by"
    # two standard errors: over seeds (variance 0.0208 / 3), over rows (0.05 squared)
    around = 200 * (variance([0.75, 0.5, 0.75]) / 3 + 0.05**2) ** 0.5
    assert first["accuracy, %"] == f"66.7 ({200 / 3 - around:.1f} to {200 / 3 + around:.1f})"
    assert second["accuracy, %"].startswith("25.0 (") and second["accuracy, %"].endswith("), 1 of 3 seeds")
    assert last == {"method": "vera"} | dict.fromkeys(first.keys() - {"method", "accuracy, %"}, "") | {
        "accuracy, %": "refused"
    }


def test_a_run_at_another_rate_stands_beside_the_searched_one(
    table: Callable[..., list[dict[str, str]]], tmp_path: Path
) -> None:
    lora = [line | {"loss": 0.3} for line in lines_of("lora", "1110" * 25, "1100" * 25)]
    other = lines_of("lora", "1111" * 25, "1111" * 25)[1] | {"lr": 1e-4, "loss": 0.2}
    (tmp_path / "other_rates.jsonl").write_text(json.dumps(other) + "\n")
    found = [row for row in table(*lora, page=field_table.DOCS) if "seed" in row]
    assert [(row["seed"], *list(row.values())[2:4]) for row in found] == [
        ("1", "0.0001", "100.0"),
        ("1", "**0.00117**", "50.0"),
    ]


def test_a_task_without_results_has_no_section(table: Callable[..., list[dict[str, str]]]) -> None:
    assert table() == [] and "Nothing is measured" in field_table.tables()[0].text
    other = lines_of("lora", "10" * 50)[0] | {"task": "sst2"}
    assert table(other) == [], "of another benchmark"
    (row,) = table(*lines_of("lora", "10" * 50, task="smollm2-arithmetic", kept=False), page=field_table.DOCS)
    assert row["exact match, %"] == "50.0, 1 of 3 seeds"


def test_the_loss_at_a_rate_that_was_not_tried_is_between_its_neighbors() -> None:
    losses = {0.001: 3.0, 0.004: 1.0}
    assert [rates.loss_at(rate, losses) for rate in (0.004, 0.002, 0.0005, 0.01)] == ["1.000", "~2.000", "", ""]
    assert rates.default("lora", "smollm2-sst2") == rates.default("dora", "smollm2-e2e") > 0
    (row,) = rates.table({("smollm2-sst2", "lora"): losses})[2:]
    assert row.startswith("| smollm2-sst2 | lora |") and "| 0.004 |" in row
    (row,) = rates.by_width({("smollm2-sst2", "lora"): losses, ("reviews", "lora"): {0.012: 1.0}})[2:]
    assert row == "| lora | smollm2-sst2 | 0.012 | 0.004 | -1.00 |"


def test_cells_are_filled_once_at_the_rate_that_was_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Any, ...]] = []

    def measure(name: str, arm: str, seed: int, lr: float | None, sweep: field.Length | None = None) -> dict[str, Any]:
        """Runs half as long are best at 0.03, whole ones at 0.003."""
        ran.append((arm, seed, lr, sweep))
        line = {"task": f"smollm2-{name}", "arm": arm, "seed": seed, "sweep": bool(sweep), "asked_lr": lr}
        return line | {"lr": lr or 0.01, "loss": abs((lr or 0.01) - (0.03 if sweep == "half" else 0.003))}

    monkeypatch.setattr(field, "measure", measure)
    for name in ("RESULTS", "SWEEP", "WHOLE_SWEEP", "BUILD"):
        monkeypatch.setattr(field, name, tmp_path / name)
    with field.claimed("sst2", "lora", -1):
        assert field.work(["sst2"], ["lora"], [0]) and not ran, "its rate is being searched elsewhere"
    assert not field.work(["sst2"], ["lora"], [0, 1])
    searched = [("lora", 0, lr, "half") for lr in (None, 0.03, 0.09)]
    searched += [("lora", 0, lr, "whole") for lr in (0.03, 0.01, 0.00333, 0.00111)]
    assert ran == [*searched, ("lora", 0, 0.00333, None), ("lora", 1, 0.00333, None)]
    assert not field.work(["sst2"], ["lora"], [0, 1]) and len(ran) == 9
    kept = field.recorded("sst2", "lora", 1)
    assert kept is not None and kept["lr"] == 0.00333 and field.recorded("sst2", "ia3", 1) is None


def test_each_cell_of_the_field_is_at_the_rate_that_its_search_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*asked: Any) -> dict[str, Any]:
        raise AssertionError(f"a run of the search that is not recorded: {asked}")

    monkeypatch.setattr(field, "measure", missing)
    monkeypatch.setattr(field, "BUILD", tmp_path)
    cells = {(line["task"], line["arm"], line["lr"]) for line in filter(field_table.of_field, run.read(field.RESULTS))}
    assert len(cells) >= 20
    for task, arm, lr in cells:
        assert lr == field.rate(task.removeprefix("smollm2-"), arm)
