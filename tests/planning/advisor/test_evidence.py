"""Evidence: where each figure comes from, what counts as equal, and whose word counts first."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.methods import evidence as made_by
from benchmarks.methods import peft_published as published

from luthier.core.errors import InputError
from luthier.methods.base import METHODS
from luthier.methods.peft import known_type
from luthier.models.settings import ModelConfig
from luthier.planning import machine
from luthier.planning.advisor import nearness
from luthier.planning.advisor.candidates import NAMES, Planner
from luthier.planning.advisor.evidence import (
    Board,
    Citation,
    Score,
    comparisons,
    measured,
    papers,
    peft_board,
    peft_runs,
    repository,
    wilson,
)
from luthier.planning.advisor.nearness import RELATED, differences_of, distance, relevant, shown_evidence
from luthier.planning.advisor.question import ChooseOptions, DataFacts, assumed_facts
from luthier.planning.advisor.rank import standing
from luthier.planning.advisor.reasons import Question
from luthier.tasks.base import TASKS
from luthier.training.settings import TrainConfig, total_steps
from tests.conftest import ROOT
from tests.planning.advisor.conftest import Choose


def test_the_repositorys_figures_are_those_of_its_benchmark_and_say_by_which_command() -> None:
    assert made_by.OUT.read_text(encoding="utf-8") == made_by.text(), "run python -m benchmarks.methods.evidence"
    kept = measured()
    for board in kept["boards"]:
        module = board["command"].split()[2]
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file() and len(board["scores"]) > 1
        assert set(board["scores"]) <= set(NAMES), "the benchmark has a method that choose does not consider"
    lines = [json.loads(line) for line in (ROOT / kept["file"]).read_text().splitlines()]
    lora = [line["accuracy"] for line in lines if (line["task"], line["arm"]) == ("sst2", "lora")]
    board = repository()["SST-2"]
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


@pytest.mark.parametrize("arm", repository()["SST-2"].scores)
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
    assert "your comparison: others.jsonl" in found["ranked"][0]["reasons"][0]["text"]
    assert "builtin on this machine, another base or other data" in found["evidence"][0]["text"]
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
    if kind in ("paper", "peft"):
        return any((board.source.place, board.source.key) == (place, key) for board in (*papers(), peft_board()))
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
    reasons = [*found["limits"], *found["ruled_out"], *found["evidence"]] + [
        r for row in found["ranked"] for r in row["reasons"]
    ]
    kinds = {reason["source"]["kind"] for reason in reasons}
    assert len(found["ranked"][0]["reasons"]) >= 3 and len(kinds) >= 3
    for reason in reasons:
        assert exists(reason["source"], tmp_path), reason
    for row in found["ranked"]:
        assert row["score"] is not None and row["score"]["cited"].startswith("[")
    assert not exists({"kind": "paper", "place": "2106.09685", "key": "Table 99"}, tmp_path)


def case(learns: Any, family: str, parameters: int, rows: int, labels: int = 0, boards: Any = ()) -> Question:
    names = tuple(map(str, range(labels))) or None
    facts = DataFacts(learns, rows, [10], [5], names)
    here = machine.TargetMachine("cpu", 10**10, 10**10)
    return Question(facts, ChooseOptions(), "m", family, parameters, 4 * parameters, here, boards)


@pytest.mark.parametrize(("learns", "family"), RELATED)
def test_boards_are_found_for_every_task_and_family(learns: Any, family: str) -> None:
    question = case(learns, family, 10**8, 1000, 2)
    found = relevant(question)
    assert found and all(board.learns in RELATED[learns, family] for board in found)
    assert [distance(question, board) for board in found] == sorted(distance(question, board) for board in found)


def test_the_nearest_measurement_comes_first() -> None:
    def names(*asked: Any) -> list[str]:
        return [board.name for board in relevant(case(*asked))]

    assert names("answers", "decoder", 7 * 10**9, 20_000)[0] == "GSM8K"
    assert names("answers", "decoder", 3_346_752, 52)[0] == "assistant"
    assert names("text", "decoder", 7 * 10**9, 20_000)[0] == "GSM8K"
    assert "GSM8K" not in names("labels", "decoder", 7 * 10**9, 500)
    alike = case("classify", "encoder", 22_713_986, 3000, 2)
    assert distance(alike, repository()["SST-2"]) == pytest.approx(0)
    assert differences_of(alike, repository()["SST-2"]) == []
    assert differences_of(case("classify", "decoder", 227_139_860, 300, 2), repository()["SST-2"]) == [
        "your base is 10 times larger",
        "you have 10 times fewer rows",
        "its base is of type encoder, yours of type decoder",
    ]


def test_a_further_measurement_counts_where_the_nearer_ones_lack_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(name: str, rows: int, *methods: str) -> Board:
        made = board({method: score(80.0) for method in methods})
        return made.model_copy(update={"name": name, "rows": rows, "learns": "labels", "family": "decoder"})

    boards = [small(str(rows), rows, "lora", "full") for rows in (100, 200, 300, 400)]
    boards += [small("500", 500, "lora", "prompt"), small("600", 600, "prompt"), small("700", 700, *NAMES)]
    monkeypatch.setattr(nearness, "repository", lambda: {each.name: each for each in boards})
    found = relevant(case("labels", "decoder", 10**8, 100, 2))
    assert [each.name for each in found] == ["100", "200", "300", "500", "700"]


def test_the_next_measurement_only_decides_where_the_nearer_one_ties() -> None:
    near = board({"a": score(80.0), "b": score(79.5), "c": score(60.0)})
    far = board({"a": score(50.0), "b": score(70.0), "c": score(90.0), "d": score(89.5), "e": score(10.0)})
    far = far.model_copy(update={"name": "y"})
    question = case("answers", "decoder", 10**8, 100, boards=(near, far))
    order = sorted("abcde", key=lambda name: standing(question, name))
    assert order == ["b", "a", "d", "e", "c"], "d and e are not on the nearest board, where c is behind"
    own = near.model_copy(update={"tier": 0})
    question = case("answers", "decoder", 10**8, 100, boards=(own, far))
    assert standing(question, "a") == standing(question, "b"), "own measurements settle it"


def test_pefts_comparison_is_whole_and_its_methods_are_those_here() -> None:
    made = peft_runs()
    runs = {run["experiment"]: run for run in made["runs"]}
    assert made["source"] in peft_board().source.place and made["commit"][:10] in peft_board().source.place
    assert re.fullmatch(r"[0-9a-f]{40}", made["commit"]) and made["license"] == "Apache-2.0" and len(runs) == 63
    for run in made["runs"]:
        right = run["accuracy"] * made["examples"]
        assert abs(right - round(right)) < 0.01 and run["memory_max"] > run["memory_99th"] > 10**10
        if run["method"] not in {None, *METHODS.names(), *METHODS.presets}:
            assert known_type(run["method"]) == run["method"]
    assert {runs[f"lora--llama-3.2-3B-rank32{more}"]["method"] for more in ("", "-dora")} == {"lora", "dora"}
    assert runs["lily--llama-3.2-3B-rank140-mlp-a2-b2-s8.0"]["method"] is None, "refused here"
    best = peft_board()
    assert best.scores["ia3"].shown() == "45.5 (42.8 to 48.2)" and best.scores["ia3"].setting.endswith("lr 0.005")
    assert best.ties("lora") and best.ties("qlora") and not best.ties("adalora") and best.single_runs
    (table,) = published.tables()
    assert table.text.strip() in table.page.read_text(encoding="utf-8"), f"run {table.command}"


def test_wilsons_interval() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson(0.0, 1319)
    assert low == pytest.approx(0) and 0.002 < high < 0.004


def a_result(accuracy: float, **train: Any) -> dict[str, Any]:
    """A result as PEFT's comparison writes it."""
    settings = {"model_id": "m", "dtype": "bfloat16", "max_steps": 10, "batch_size": 4, "max_seq_length": 8, "seed": 0}
    settings |= {"lr_scheduler": "cosine", "optimizer_type": "AdamW", "optimizer_kwargs": {"lr": 0.1}} | train
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 20, "target_modules": None}
    last = {"test accuracy": accuracy, "train loss": 1.0, "forgetting": 0.5}
    info = {"metrics": [last], "status": "success", "train_time": 60.0, "file_size": 9, "num_trainable_params": 1}
    info |= {f"accelerator_memory_{name}": 5 for name in ("max", "reserved_avg", "reserved_99th")}
    meta = {"system_info": {"accelerator": "GPU"}, "package_info": {"peft-version": "1", "torch-version": "2"}}
    run = {"created_at": "2026-07-15T06:25:17+00:00", "train_config": settings, "peft_config": config}
    return {"run_info": run, "train_info": info | {"num_total_params": 2}, "meta_info": meta}


def test_pefts_figures_are_read_from_a_commit(tmp_path: Path) -> None:
    folder = tmp_path / published.FOLDER
    folder.mkdir(parents=True)

    def commit(**results: dict[str, Any]) -> None:
        for name, result in results.items():
            (folder / f"{name}.json").write_text(json.dumps(result))
        for words in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
            published.git(tmp_path, *words)

    commit(one=a_result(660 / 1319))
    made = published.read(tmp_path)
    (run,) = made["runs"]
    assert json.loads(published.text(made)) == made and made["rows"] == 40 and made["hardware"] == "GPU"
    assert (run["experiment"], run["method"], run["lr"], run["virtual_tokens"]) == ("one", "prompt", 0.1, 20)
    assert run["accuracy"] == pytest.approx(660 / 1319, abs=1e-6) and run["date"] == "2026-07-15"
    commit(two=a_result(0.5003))
    with pytest.raises(ValueError, match=r"two: status success, 659.9 of 1319"):
        published.read(tmp_path)
    commit(two=a_result(0.0, seed=1))
    with pytest.raises(ValueError, match=r"the runs differ in \{'seed': "):
        published.read(tmp_path)


def test_a_benchmark_that_is_not_whole_is_a_board_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"trainable": 1, "bytes": 4, "parameters": 10, "rows": 100, "held_out": 50, "steps": 9}
    facts |= dict.fromkeys(made_by.VERSIONS, "1")

    def lines(*values: float | None) -> list[dict[str, Any]]:
        return [facts | {"exact_match": value} for value in values]

    arms = {"lora": lines(0.4, 0.5), "ia3": lines(0.3), "bitfit": [{"refused": "no bias"}], "oft": lines(None)}
    made = made_by.board("smollm2-arithmetic", arms)
    assert made is not None and set(made["scores"]) == {"lora", "ia3"}
    both = {name: Score(**each) for name, each in made["scores"].items()}
    assert both["lora"].shown() == "45.0 (35.0 to 55.0) (2 of 3 seeds)" and both["ia3"].shown() == "30.0 (1 of 3 seeds)"
    assert made_by.board("smollm2-arithmetic", {"lora": lines(0.4)}) is None
    whole = made_by.board("smollm2-e2e", {name: [facts | {"bleu": 60.0}] * 3 for name in ("full", "lora")})
    assert whole is not None and whole["scores"]["full"]["value"] == 60.0 and "of" not in whole["scores"]["full"]
    assert all(each["command"].startswith("python -m benchmarks.methods.field ") for each in (made, whole))
    labels = made_by.board("smollm2-sst2", {name: [facts | {"accuracy": 0.8}] * 3 for name in ("full", "lora")})
    assert labels is not None
    near = Board(**labels | {"parameters": 134_515_008, "rows": 480}, tier=2, source=Citation("repository", ""))
    known = dict(repository())
    monkeypatch.setattr(nearness, "repository", lambda: known | {near.name: near})
    question = case("labels", "decoder", 134_515_008, 500, 2)
    first = shown_evidence(replace(question, boards=relevant(question)))[0]["text"]
    assert first.startswith("SST-2 in words, accuracy, measured by Luthier on SmolLM2-135M-Instruct, 134.5 million")
