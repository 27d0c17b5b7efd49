"""lm-evaluation-harness on a run: a task file of one's own, with its own data, tuned against base."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from luthier.core.errors import InputError, MissingExtra
from luthier.core.events import Progress
from luthier.evaluation.harness import _scores, measure_harness
from luthier.pipeline.evaluate import harness
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from tests.conftest import luthier, review_rows, write_jsonl

needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed (pip install lm-eval)"
)

TASK = """
task: film_verdicts
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: [" bad", " good"]
doc_to_target: label
metric_list:
  - metric: acc
"""


@pytest.fixture
def run(model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    file = write_jsonl(tmp_path / "reviews.jsonl", review_rows(30))
    settings = [
        f"model={model_folder('llama')}",
        f"data={file}",
        "task=chat",
        "evaluate.generate=0",
        "evaluate.forgetting=false",
        "train.steps=4",
        "train.lr=1e-2",
        f"run={tmp_path / 'run'}",
    ]
    train(RunConfig.load(None, settings))
    return tmp_path / "run"


@needs_harness
def test_a_task_of_ones_own_is_asked_of_base_and_tuned_model(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    file = write_jsonl(folder / "films.jsonl", review_rows(24))
    (folder / "films.yaml").write_text(TASK.format(file=file))
    said = luthier("evaluate", run, "--harness", "film_verdicts", "--harness-path", folder, "--harness-limit", "20")
    assert said.returncode == 0, said.stderr
    assert "film_verdicts" in said.stdout and "acc" in said.stdout and "only the first 20 rows" in said.stdout
    kept = json.loads((run / "harness.json").read_text())
    score = kept["scores"]["film_verdicts"]["acc"]
    assert 0 <= score["base"] <= 1 and 0 <= score["tuned"] <= 1 and score["tuned_error"] > 0
    assert score["difference"] == pytest.approx(score["tuned"] - score["base"]) and kept["limit"] == 20
    with pytest.raises(InputError, match="has no task 'film_verdict'"):
        harness(run, ["film_verdict"], folder_of_tasks=folder)


@needs_harness
def test_the_base_is_the_base(run: Path, tmp_path: Path) -> None:
    """Scores of the base do not depend on what was tuned: they are those of the model loaded alone."""
    from luthier.pipeline.evaluate import open_run

    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "films.yaml").write_text(
        TASK.format(file=write_jsonl(folder / "films.jsonl", review_rows(24))).replace(
            "metric: acc", "metric: brier_score"
        )
    )
    both = harness(run, ["film_verdicts"], folder_of_tasks=folder)["scores"]["film_verdicts"]["brier_score"]
    loaded, _ = open_run(run)
    plain = loaded.config.method.disabled(loaded.model)
    assert plain is not None
    with plain:
        tokenizer, tasks = loaded.template.tokenizer, ["film_verdicts"]
        alone = measure_harness(loaded.model, None, tokenizer, tasks, folder, None, 8, 256, Progress())["scores"]
    assert alone["film_verdicts"]["brier_score"]["tuned"] == pytest.approx(both["base"])
    assert both["base"] != both["tuned"], "or the adapter was not on"


def test_without_the_package_the_fix_is_reported_before_the_run_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.core.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'lm-eval>=0.4.9'"):
        harness(Path("nowhere"), ["arc_easy"])


def test_what_the_harness_says_becomes_a_difference_with_its_interval() -> None:
    before = {"alias": "t", "acc,none": 0.50, "acc_stderr,none": 0.03, "ppl,none": 9.0, "ppl_stderr,none": "N/A"}
    after = {
        "alias": "t",
        "acc,none": 0.62,
        "acc_stderr,none": 0.04,
        "ppl,none": 7.0,
        "ppl_stderr,none": "N/A",
        "exact_match,strict": 0.4,
    }
    found = _scores(before, after)
    assert found["acc"]["low"] == pytest.approx(0.12 - 1.96 * 0.05) and found["acc"]["noise"] is False
    assert found["ppl"]["difference"] == -2.0 and "noise" not in found["ppl"], "no standard error, no verdict"
    assert found["exact_match (strict)"]["base"] is None and "difference" not in found["exact_match (strict)"]
