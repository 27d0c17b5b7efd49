"""`luthier compare` as a user has it: small bases, a few steps, the whole way to the page."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.comparison.compare import compare
from luthier.comparison.runner import CompareConfig
from luthier.core.errors import InputError
from luthier.core.events import Progress
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from tests.conftest import alpaca_rows, luthier, review_rows, write_jsonl
from tests.processes import Command

SHORT = ["train.steps=4", "train.batch_size=4", "evaluate.generate=0", "data.validation=0.3", "method.rank=2"]


@pytest.fixture
def recipe(model_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., RunConfig]:
    write_jsonl(tmp_path / "rows.jsonl", review_rows(40))

    def made(*overrides: str) -> RunConfig:
        options = [f"model={model_folder('llama')}", f"data={tmp_path / 'rows.jsonl'}", "task=classify", *SHORT]
        return RunConfig.load(None, [*options, f"run={tmp_path / 'compared'}", *overrides])

    return made


def row(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in found["rows"] if each["arm"] == name)


def test_methods_are_compared_and_each_run_is_the_one_that_train_makes(
    recipe: Callable[..., RunConfig], tmp_path: Path
) -> None:
    options = CompareConfig("lora,full,prompt,pissa,lora_int8", seeds=2, workers=2)
    found = compare(recipe(), options)
    assert found["metric"] == "accuracy" and found["seeds"] == [0, 1] and found["version"] == 1
    assert {each["arm"] for each in found["rows"]} == {"lora", "full", "prompt", "pissa", "lora_int8"}
    for each in found["rows"]:
        assert each["status"] == "done" and each["seeds"] == [0, 1] and each["score"]["low"] <= each["score"]["high"]
        assert each["memory"] > 1e8 and each["adapter_bytes"] > 0 and each["latency"]["row"]["ratio"] > 0
        assert each["arm"] == found["best"] or each["against"]["best"]["verdict"]
    assert row(found, "full")["share"] == 1 and row(found, "lora")["cost"]["bytes"] < 1
    page = (tmp_path / "compared/compare.html").read_text()
    assert (
        page.count('class="chart"') == 6  # three charts, each wide and narrow
        and page.count("data-chart=") == 3
        and page.count("<script") == 1
    )
    for name, seed in (("lora", 0), ("lora", 1), ("full", 0), ("pissa", 1), ("lora_int8", 0), ("prompt", 0)):
        kept = RunFolder(tmp_path / f"compared/arms/{name}-s{seed}")
        alone = RunConfig.load(kept.recipe, [f"run={tmp_path / f'alone-{name}-{seed}'}"])
        train(alone)
        mine = RunFolder(Path(alone.run))
        assert [r["loss"] for r in mine.history() if "loss" in r] == [r["loss"] for r in kept.history() if "loss" in r]
        weights = next(mine.weights().glob("*.safetensors"))
        assert weights.read_bytes() == (kept.weights() / weights.name).read_bytes(), name
        said = [[json.loads(line)["tuned"] for line in each.predictions.open()] for each in (mine, kept)]
        assert said[0] == said[1]


def test_a_base_that_train_has_measured_is_known(
    recipe: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Notes(Progress):
        def note(self, text: str) -> None:
            noted.append(text)

    noted: list[str] = []
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("luthier.pipeline.measure.WORTH", 0)
    alone = train(recipe("task=chat", "method=ia3", f"run={tmp_path / 'alone'}"))
    compare(recipe("task=chat"), CompareConfig("lora", workers=1), progress=Notes())
    assert any("evaluate.cache" in note for note in noted)
    run = RunFolder(tmp_path / "compared/arms/lora-s0")
    assert run.read_json(run.result)["base"] == alone["base"]
    assert run.read_json(run.before)["of"] == json.loads((tmp_path / "compared/base/before.json").read_text())["of"]


def test_all_methods_give_rows_and_those_that_cannot_run_their_reasons(
    recipe: Callable[..., RunConfig], tmp_path: Path
) -> None:
    found = compare(recipe("train.steps=1"), CompareConfig("all", workers=2))
    refused = {each["arm"]: each["reason"] for each in found["rows"] if each["status"] == "not run"}
    assert set(refused) == {"bitfit", "adalora", "fusion"} and "bias" in refused["bitfit"], "a Llama has none"
    assert "1 step" in refused["adalora"] and not (tmp_path / "compared/arms/adalora-s0").exists()
    failed = [each for each in found["rows"] if each["status"] == "failed"]
    assert not failed, failed
    assert len(found["rows"]) == 30
    again = compare(recipe("train.steps=1"), CompareConfig("all", workers=2))
    assert {r["arm"]: r["score"] for r in again["rows"]} == {r["arm"]: r["score"] for r in found["rows"]}


def test_a_run_that_fails_is_a_row_and_stops_nothing(recipe: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = recipe()
    place = tmp_path / "compared/arms/prompt-s0"
    place.mkdir(parents=True)
    (place / "in the way").write_text("a file of somebody else's")
    found = compare(config, CompareConfig("lora,prompt", workers=2))
    assert row(found, "lora")["status"] == "done"
    assert row(found, "prompt")["status"] == "failed" and "is not empty" in row(found, "prompt")["reason"]
    (place / "in the way").unlink()
    found = compare(config, CompareConfig("lora,prompt", workers=2))
    assert row(found, "prompt")["status"] == "done"


def test_killed_and_started_again_it_goes_on_and_ends_the_same(
    recipe: Callable[..., RunConfig], tmp_path: Path
) -> None:
    options = [*SHORT, "task=classify", f"data={tmp_path / 'rows.jsonl'}", "train.save_every=1", "train.steps=6"]
    model = recipe().model.path
    (tmp_path / "recipe.yaml").write_text("seed: 0\n")

    def command(run: Path) -> list[str]:
        given = [*options, f"model={model}", f"run={run}", "--methods", "lora,houlsby", "--workers", "1"]
        return ["compare", str(tmp_path / "recipe.yaml"), *given]

    assert luthier(*command(tmp_path / "whole")).returncode == 0
    process = Command(command(tmp_path / "killed"))
    second = tmp_path / "killed/arms/houlsby-s0/checkpoints"
    process.wait_for(lambda: list(second.glob("step-*")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (75, 143) and not (tmp_path / "killed/compare.json").exists()
    done = luthier(*command(tmp_path / "killed"))
    assert done.returncode == 0, done.stderr
    for name in ("lora", "houlsby"):
        kept, whole = (RunFolder(tmp_path / f"{each}/arms/{name}-s0") for each in ("killed", "whole"))
        assert [r["loss"] for r in kept.history() if "loss" in r] == [r["loss"] for r in whole.history() if "loss" in r]
    one, other = (json.loads((tmp_path / f"{each}/compare.json").read_text()) for each in ("killed", "whole"))
    assert {r["arm"]: r["score"] for r in one["rows"]} == {r["arm"]: r["score"] for r in other["rows"]}


def test_tune_finds_a_rate_on_rows_the_score_never_sees(recipe: Callable[..., RunConfig], tmp_path: Path) -> None:
    found = compare(recipe("train.steps=88"), CompareConfig("lora", tune=True, workers=1))
    chosen = found["tuned"]["lora"]
    assert found["steps"] == 44 and len(chosen["tries"]) == 7 and chosen["field"] == "rank"
    assert row(found, "lora")["lr"] == pytest.approx(chosen["lr"]) and chosen["size"] in (1, 2, 4)
    assert sum(each["steps"] for each in chosen["tries"]) == 44
    best = min((each for each in chosen["tries"][3:]), key=lambda each: each["loss"])
    assert (float(f"{best['lr']:.3g}"), best["size"]) == (chosen["lr"], chosen["size"])


def test_rows_of_a_search_are_the_training_rows(recipe: Callable[..., RunConfig]) -> None:
    from luthier.comparison.tuning import split_for_tuning
    from luthier.core.events import Progress
    from luthier.pipeline.prepare import prepare_data, tokenize

    config = recipe()
    data = prepare_data(config, Progress())
    tokenize(config, data, Progress())
    parts = split_for_tuning(data)
    inside = {example.text for example in data.examples}
    trained, held = ([example.text for example in side] for side in (parts.examples, parts.validation_examples))
    assert {*trained, *held} == inside and len(trained) + len(held) == len(data.examples) and held
    for rows, examples in ((parts.rows, parts.examples), (parts.validation_rows, parts.validation_examples)):
        by_text = {example.text: i for i, example in enumerate(data.examples)}
        for place, owner in enumerate(rows.owner):
            assert rows[place].ids == data.rows[by_text[examples[owner].text]].ids


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (["data.validation=none"], CompareConfig("lora"), "0 held-out examples"),
        (["data.validation_limit=1"], CompareConfig("lora"), "1 held-out example:"),
        ([], CompareConfig("lora,bitfit"), "--methods bitfit"),
        ([], CompareConfig("lora", tokens=3), "less than one step"),
        ([], CompareConfig("lora", budget=60, tokens=10_000), "--budget and --tokens"),
        ([], CompareConfig("lora,full", budget=1.0), "--budget 1 s is too short for 2 runs"),
        ([], CompareConfig("lora", tune=True), "--tune takes half"),
        (["data.streaming=true"], CompareConfig("lora"), "reads its rows first"),
    ],
)
def test_what_cannot_be_compared_is_an_error_before_the_first_run(
    recipe: Callable[..., RunConfig], tmp_path: Path, overrides: list[str], options: CompareConfig, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        compare(recipe(*overrides), options)
    assert message in str(caught.value) and not list((tmp_path / "compared").glob("arms/*"))


def test_the_folder_of_another_comparison_or_run_is_refused(recipe: Callable[..., RunConfig], tmp_path: Path) -> None:
    compare(recipe("train.steps=1"), CompareConfig("lora", workers=1))
    with pytest.raises(InputError, match="holds another comparison: seeds"):
        compare(recipe("train.steps=1"), CompareConfig("lora", seeds=2, workers=1))
    grown = compare(recipe("train.steps=1"), CompareConfig("lora,full", workers=1))
    assert row(grown, "full")["status"] == row(grown, "lora")["status"] == "done", "more methods may follow"
    train(recipe(f"run={tmp_path / 'run'}", "train.steps=1"))
    with pytest.raises(InputError, match="is the folder of a run"):
        compare(recipe(f"run={tmp_path / 'run'}"), CompareConfig("lora"))


def test_the_command_line_shows_the_table(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(24))
    done = luthier(
        "compare",
        f"model={model_folder('llama')}",
        "data=rows.jsonl",
        *SHORT,
        "train.steps=2",
        "--methods",
        "lora,prefix",
        "--workers",
        "1",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    shown = [line for line in lines if line.strip().startswith(("lora ", "prefix "))]
    assert len(shown) == 2 and sum("the best" in line for line in shown) == 1
    assert (
        "  report: runs/compare-rows/compare.html" in lines and (tmp_path / "runs/compare-rows/compare.html").is_file()
    )
    bad = luthier("compare", f"model={model_folder('llama')}", "data=rows.jsonl", "--methods", "lara", cwd=tmp_path)
    assert bad.returncode == 2 and "did you mean" in bad.stderr.lower()
    (tmp_path / "demo").mkdir()  # the word still means the embedded demo
    demo = luthier("compare", "demo", "--methods", "lara", cwd=tmp_path)
    assert demo.returncode == 2 and "did you mean" in demo.stderr.lower(), demo.stderr
