"""Evidence: where each figure comes from, what counts as equal, and whose word counts first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks.methods import evidence as made_by

from luthier.core.errors import InputError
from luthier.methods.base import METHODS
from luthier.models.settings import ModelConfig
from luthier.planning.advisor.candidates import NAMES, Planner
from luthier.planning.advisor.evidence import (
    Board,
    Citation,
    Score,
    comparisons,
    measured,
    papers,
    relevant,
    repository,
)
from luthier.planning.advisor.question import assumed_facts
from luthier.tasks.base import TASKS
from luthier.training.settings import TrainConfig, total_steps
from tests.conftest import ROOT
from tests.planning.advisor.conftest import Choose


def test_the_repositorys_figures_are_those_of_its_benchmark_and_say_by_which_command() -> None:
    assert made_by.OUT.read_text(encoding="utf-8") == made_by.text(), "run python -m benchmarks.methods.evidence"
    kept = measured()
    for board in kept["boards"]:
        module = board["command"].split()[2]
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file() and set(board["scores"]) == set(NAMES)
    lines = [json.loads(line) for line in (ROOT / kept["file"]).read_text().splitlines()]
    lora = [line["accuracy"] for line in lines if (line["task"], line["arm"]) == ("sst2", "lora")]
    board = relevant("classify", "encoder")[0]
    assert len(lora) == 3 and board.scores["lora"].value == pytest.approx(100 * sum(lora) / 3, abs=1e-4)
    assert kept["speed"]["arms"]["dora"]["seconds"] > kept["speed"]["arms"]["lora"]["seconds"]


def test_papers_have_an_id_and_methods_that_exist() -> None:
    for board in papers():
        assert re.fullmatch(r"\d{4}\.\d{5}", board.source.place) and len(board.scores) > 1
        assert re.fullmatch(r"(Table \d+|README of its repository)?", board.source.key)
        assert set(board.scores) <= set(NAMES), board.name


def planner(folder: Path, name: str | dict[str, Any] = "lora") -> Planner:
    """Of a classifier of two classes, with a method of the recipe's own."""
    from luthier.models.load import skeleton
    from luthier.planning.plan import PlanInputs

    task = TASKS.parse({"name": "classify", "labels": ["0", "1"]})
    model, train = ModelConfig(path=str(folder)), TrainConfig(precision="fp32")
    whole = skeleton(model, str(folder), labels=("0", "1"))
    rows, steps = assumed_facts(100, task, None, 512), total_steps(train, 100)
    given = model, METHODS.parse(name), train, task, whole, str(folder), rows.lengths, rows.learned, steps
    return Planner(PlanInputs(*given, ("0", "1"), 0), 512)


@pytest.mark.parametrize("arm", NAMES)
def test_the_file_is_as_large_as_it_was_when_it_was_measured(arm: str, bases: Path) -> None:
    one = planner(bases / "minilm").candidate(arm)
    kept = next(board for board in measured()["boards"] if board["key"] == "sst2")["scores"][arm]
    assert one.file_bytes == pytest.approx(kept["bytes"], rel=0.07)  # the rest are names in the file
    assert one.trained == kept["trainable"]


def test_the_recipes_own_settings_of_a_method_count(bases: Path) -> None:
    narrow = {"name": "lora", "rank": 4}
    usual, own = (planner(bases / "minilm", each).candidate("lora") for each in ("lora", narrow))
    head = 2 * 384 + 2
    assert usual.trained - head == 4 * (own.trained - head) and usual.file_bytes > own.file_bytes
    other = planner(bases / "minilm", narrow).candidate("houlsby")
    assert other.method == METHODS.parse("houlsby")
    dora = METHODS.parse({"name": "dora", "rank": 4})
    made = planner(bases / "minilm", {"name": "dora", "rank": 4})
    assert made.method("dora") == dora and made.method("lora") == METHODS.parse("lora")


def board(scores: dict[str, Score], *, metric: str = "accuracy", higher: bool = True, tier: int = 2) -> Board:
    source = Citation("repository", "f")
    return Board(tier=tier, name="x", metric=metric, model="m", higher_is_better=higher, scores=scores, source=source)


def score(value: float, low: float | None = None, high: float | None = None) -> Score:
    return Score(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("best", "own", "higher", "ties"),
    [
        (score(80.0), score(79.1), True, True),  # within a point
        (score(80.0), score(78.9), True, False),
        (score(80.0, 78.0, 82.0), score(77.0, 76.0, 78.1), True, True),  # the intervals overlap
        (score(80.0, 79.0, 81.0), score(77.0, 76.0, 78.1), True, False),
        (score(80.0, 79.0, 81.0), score(77.0), True, False),
        (score(5.00), score(5.09), False, True),  # within 2 %
        (score(5.00), score(5.11), False, False),
        (score(0.16, 0.15, 0.17), score(0.18, 0.165, 0.19), False, True),
    ],
)
def test_what_counts_as_equal(best: Score, own: Score, higher: bool, ties: bool) -> None:
    made = board({"a": best, "b": own}, higher=higher)
    assert made.best() == "a" and made.ties("a") and made.share_lost("a") == 0.0
    assert made.ties("b") is ties and (made.share_lost("b") == 0.0) is ties


def compare(path: Path, scores: dict[str, float], **other: Any) -> Path:
    rows = [
        {
            "arm": arm,
            "method": "lora" if arm == "qlora" else arm,
            "quantize": "nf4" if arm == "qlora" else "none",
            "seeds": [0, 1, 2],
            "score": {"value": value, "low": value - 0.01, "high": value + 0.01},
            "trainable": 1,
            "share": 0.1,
            "adapter_bytes": 1000,
            "memory": 2 * 10**9,
            "tokens_per_second": 1.0,
            "seconds": 90.0,
            "status": "done",
            "reason": "",
        }
        for arm, value in scores.items()
    ]
    made = {
        "version": 1,
        "model": "builtin",
        "data": "builtin:reviews",
        "task": "chat",
        "metric": "accuracy",
        "higher_is_better": True,
        "base": None,
        "rows": rows,
        **other,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made))
    return path


REVIEWS = ["data=builtin:reviews", "task=chat"]


def test_a_comparison_on_this_machine_overrules_the_repository(choose: Choose, tmp_path: Path) -> None:
    file = compare(tmp_path / "runs" / "c" / "compare.json", {"lora": 0.60, "pfeiffer": 0.81, "qlora": 0.55})
    found = choose("builtin", REVIEWS)
    names = [row["method"] for row in found["ranked"]]
    assert names[0] == "pfeiffer" and not found["ranked"][1]["ties_with_first"]
    assert found["limits"] == [], "own measurements of this base and data leave nothing open"
    first = found["ranked"][0]["reasons"][0]
    assert "your base, your data" in first["text"] and "81.0 (80.0 to 82.0); the best there" in first["text"]
    assert "needed 2.0 GB and 90 s" in first["text"] and first["cited"] == f"[compare {file.relative_to(tmp_path)}]"
    assert len(found["next"]) == 1, "nothing is left to compare"


def test_a_variant_of_a_method_is_measured_under_its_own_name(tmp_path: Path) -> None:
    file = compare(tmp_path / "c.json", {"lora": 0.6, "dora": 0.8})
    rows = json.loads(file.read_text())
    rows["rows"][1]["method"] = "lora"  # what `luthier compare` writes for dora
    file.write_text(json.dumps(rows))
    (found,) = comparisons([file], model="builtin", data="builtin:reviews", task="chat")
    assert {name: score.value for name, score in found.scores.items()} == {"lora": 60.0, "dora": 80.0}


def test_only_a_comparison_of_the_same_task_counts_and_failures_exclude(choose: Choose, tmp_path: Path) -> None:
    other = compare(tmp_path / "other.json", {"lora": 0.1, "prompt": 0.9}, task="classify")
    assert comparisons([other], model="builtin", data="builtin:reviews", task="chat") == []
    near = compare(tmp_path / "near.json", {"lora": 0.1, "pfeiffer": 0.9}, data="others.jsonl")
    found = choose("builtin", REVIEWS, evidence=[near])
    assert found["ranked"][0]["method"] == "pfeiffer" and found["limits"] == []
    assert "on builtin" in found["ranked"][0]["reasons"][0]["text"]
    failed = {
        "arm": "lora",
        "method": "lora",
        "quantize": "none",
        "status": "failed",
        "reason": "NaN loss",
    }
    file = compare(tmp_path / "failed.json", {"full": 0.7}, rows=[failed])
    found = choose("builtin", REVIEWS, evidence=[file])
    out = {row["method"]: row for row in found["ruled_out"]}
    assert "failed on this base and data: NaN loss" in out["lora"]["text"]
    assert out["lora"]["source"] == {"kind": "compare", "place": str(file), "key": ""}


def test_a_broken_comparison_in_runs_is_reported_and_left_out(choose: Choose, tmp_path: Path) -> None:
    compare(tmp_path / "runs" / "c" / "compare.json", {"pfeiffer": 0.9}, version=2)
    assert choose("builtin", REVIEWS)["ranked"][0]["method"] == "lora"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list, not a JSON object"),
        ('{"version": 3}', "version: Input should be 1"),
        ('{"version": 1, "model": "m", "data": "d", "task": "chat"}', "metric: Field required"),
        (
            json.dumps(
                {
                    "version": 1,
                    "model": "m",
                    "data": "d",
                    "task": "chat",
                    "metric": "a",
                    "higher_is_better": True,
                    "rows": [{"arm": "lora", "status": "done"}],
                }
            ),
            "lora is done and has no score",
        ),
        (
            json.dumps(
                {
                    "version": 1,
                    "model": "m",
                    "data": "d",
                    "task": "chat",
                    "metric": "a",
                    "higher_is_better": True,
                    "rows": [{"arm": "lora"}],
                }
            ),
            "rows.0.status: Field required",
        ),
        (
            json.dumps(
                {
                    "version": 1,
                    "model": "m",
                    "data": "d",
                    "task": "chat",
                    "metric": "a",
                    "higher_is_better": True,
                    "rows": [{"arm": "lora", "status": "done", "score": {"value": float("nan")}}],
                }
            ),
            "rows.0.score.value: Input should be a finite number",
        ),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(text: str, part: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"--evidence: .*odd\.json") as caught:
        comparisons([file], model="m", data="d", task="chat")
    assert part in caught.value.message and "compare.json" in caught.value.fix


def exists(source: dict[str, str], root: Path) -> bool:
    """Is what a reason cites really there?"""
    kind, place, key = source["kind"], source["place"], source["key"]
    if kind == "compare":
        return (root / place).is_file()
    if kind == "repository":
        commands = [board["command"] for board in measured()["boards"]] + [measured()["speed"]["command"]]
        return (ROOT / place).is_file() and key in commands
    if kind == "paper":
        return any((board.source.place, board.source.key) == (place, key) for board in papers())
    if kind == "plan":
        return place.startswith("luthier plan, config.json of ") or place == "measured just now"
    if place.endswith(".md"):
        return f"## {key}" in (ROOT / place).read_text()
    command = re.fullmatch(r"luthier (explain method (\w+)|list methods)", place)
    return command is not None and (command[2] is None or command[2] in {*METHODS.names(), *METHODS.presets})


@pytest.mark.parametrize(
    ("base", "overrides", "options"),
    [
        ("builtin", REVIEWS, {"variants": 3, "latency": "5"}),
        ("bert-base", [], {"rows": 500, "latency": "merged", "devices": 2, "memory": "2GB"}),
        ("llama-7b", [], {"rows": 500, "memory": "12GB", "time": "1h"}),
    ],
)
def test_every_reason_cites_something_that_exists(
    base: str, overrides: list[str], options: dict[str, Any], choose: Choose, tmp_path: Path
) -> None:
    compare(tmp_path / "runs" / "c" / "compare.json", {"lora": 0.7, "full": 0.7}, data="others.jsonl")
    found = choose(base, overrides, **options)
    reasons = [*found["limits"], *found["ruled_out"]] + [r for row in found["ranked"] for r in row["reasons"]]
    kinds = {reason["source"]["kind"] for reason in reasons}
    assert len(found["ranked"][0]["reasons"]) >= 3 and len(kinds) >= 3
    for reason in reasons:
        assert exists(reason["source"], tmp_path), reason
    for row in found["ranked"]:
        assert row["score"] is not None and row["score"]["cited"].startswith("[")
    assert not exists({"kind": "paper", "place": "2106.09685", "key": "Table 99"}, tmp_path)


def test_boards_are_found_for_every_task_and_family() -> None:
    assert set(repository()) == {"SST-2", "CoLA", "reviews", "assistant"}
    for learns, family in (
        ("classify", "encoder"),
        ("classify", "decoder"),
        ("classify", "encoder-decoder"),
        ("labels", "decoder"),
        ("answers", "decoder"),
        ("text", "decoder"),
    ):
        assert relevant(learns, family)  # type: ignore[arg-type]
