"""A run as an object: scores, answers, other rows, exports, and what a notebook shows of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.files import sha256
from tests.conftest import alpaca_rows, review_rows
from tests.conftest import luthier as command

MARKUP = "<script>alert(1)</script>"


def test_scores_are_those_of_result_json(trained: luthier.Run) -> None:
    body = json.loads((trained.path / "result.json").read_text())
    scores = trained.scores
    assert next(iter(scores)) == body["primary_metric"] == scores.primary.metric  # type: ignore[union-attr]
    assert set(scores) == set(body["tuned"]) and scores.examples == body["validation_examples"] == 8
    loss = scores["loss"]
    assert (loss.value, loss.low, loss.high) == tuple(body["tuned"]["loss"][key] for key in ("value", "low", "high"))
    assert loss.base is not None and loss.base.value == body["base"]["loss"]["value"]
    assert loss.difference is not None and math.isclose(float(loss), float(loss.base) + loss.difference.value)
    assert loss.verdict == body["difference"]["loss"]["verdict"] and not loss.higher_is_better
    assert trained.to_dict() == body and loss.to_dict()["base"]["low"] == loss.base.low
    assert "8 examples" in repr(scores) and "loss" in repr(scores)


def test_the_rest_of_a_run(trained: luthier.Run, settings: dict[str, Any]) -> None:
    assert trained.finished and [line["step"] for line in trained.history if "loss" in line] == [1, 2, 3, 4]
    assert trained.recipe["method"]["rank"] == 4 and trained.recipe["data"]["path"].endswith(".jsonl")
    assert repr(trained).startswith(f"Run({str(trained.path)!r}, lora on ")
    page = trained.report
    assert Path(page) == trained.path / "report.html" and str(page) == str(page.path)
    frame = page._repr_html_()
    assert frame.startswith("<iframe") and "&lt;html" in frame and "<html" not in frame, "its text is an attribute"


def test_what_a_notebook_shows_of_a_run_is_escaped(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / MARKUP.replace("/", "")
    run = luthier.train(**settings, run=folder)
    shown = run._repr_html_()
    assert "<svg" in shown and "held-out examples" in shown
    assert "<script>" not in shown and "&lt;script&gt;alert(1)" in shown


def test_a_run_that_is_not_finished_says_how_to_go_on(trained: luthier.Run, tmp_path: Path) -> None:
    for name in ("recipe.yaml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((trained.path / name).read_bytes())
    run = luthier.load(tmp_path)
    assert not run.finished and "not finished" in repr(run) and "not finished" in run._repr_html_()
    assert len(run.history) == len(trained.history)
    for use in (lambda: run.scores, lambda: run.generate("hello"), run.evaluate, run.export):
        with pytest.raises(luthier.InputError, match=r"not finished|no finished weights") as caught:
            use()
        assert "luthier train" in caught.value.fix


def test_answers_are_those_of_luthier_chat(trained: luthier.Run) -> None:
    made = command("chat", trained.path, "--prompt", "Say number 3.", "--max-new-tokens", 9)
    assert made.returncode == 0, made.stderr
    told = trained.generate("Say number 3.", max_new_tokens=9)
    assert told == made.stdout.strip()
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say number 3."}]
    assert trained.generate(turns, max_new_tokens=9) == trained.generate(
        "Say number 3.", system="Be brief.", max_new_tokens=9
    )
    base = command("chat", trained.path, "--prompt", "Say number 3.", "--max-new-tokens", 9, "--untuned")
    own = trained.generate("Say number 3.", untuned=True, max_new_tokens=9)
    assert own != told and own.replace("\b", "") == base.stdout.strip().replace("\b", ""), "rich drops backspaces"


def test_many_prompts_are_answered_side_by_side(trained: luthier.Run) -> None:
    prompts = [f"Say number {number}." for number in range(20)]
    told = trained.generate_all(prompts, max_new_tokens=6)
    assert told == [trained.generate(prompt, max_new_tokens=6) for prompt in prompts]
    warm = {"temperature": 1.0, "max_new_tokens": 12}
    assert trained.generate(prompts[0], seed=1, **warm) == trained.generate(prompts[0], seed=1, **warm)
    assert len({trained.generate(prompts[0], seed=seed, **warm) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("prompt", "sampling", "said"),
    [
        ("x", {"temperature": -1}, "temperature=-1"),
        ("x", {"max_new_tokens": 0}, "max_new_tokens=0"),
        ("x", {"top_p": 0}, "top_p=0"),
        ([], {}, "prompt has no turns"),
        (3, {}, "prompt should be a list of turns"),
        ([{"role": "king", "content": "x"}], {}, "unknown role 'king'"),
        ("long " * 400, {}, "the model's limit"),
    ],
)
def test_a_prompt_that_cannot_be_answered(
    trained: luthier.Run, prompt: Any, sampling: dict[str, Any], said: str
) -> None:
    with pytest.raises(luthier.InputError) as caught:
        trained.generate(prompt, **sampling)
    assert said in str(caught.value)


def test_other_rows_are_measured_and_the_run_stays_as_it_is(trained: luthier.Run, settings: dict[str, Any]) -> None:
    before = {path: sha256(path) for path in trained.path.rglob("*") if path.is_file()}
    held = [
        json.loads(line)["example"]["messages"] for line in (trained.path / "held_out.jsonl").open() if '"ids"' in line
    ]
    rows = [{"messages": [{"role": turn["role"], "content": turn["content"]} for turn in turns]} for turns in held]
    scores = trained.evaluate(rows)
    assert scores.examples == len(rows) == 8
    for name, own in trained.scores.items():
        assert math.isclose(scores[name].value, own.value, rel_tol=1e-6), name
        assert own.base is not None and math.isclose(scores[name].base.value, own.base.value, rel_tol=1e-6)  # type: ignore[union-attr]
    assert [row["answer"] for row in scores.predictions] == [turns[-1]["content"] for turns in held]
    assert {path: sha256(path) for path in trained.path.rglob("*") if path.is_file()} == before
    few = trained.evaluate(alpaca_rows(6)[:3], rows=2)
    assert few.examples == 2 and any("fewer than" in caveat for caveat in few.caveats)
    assert "fewer than" in few._repr_html_() and "&lt;" not in few._repr_html_()
    with pytest.raises(luthier.InputError, match=r"evaluate\.generat: unknown key"):
        trained.evaluate(rows, generat=3)


def test_the_runs_own_rows_are_measured_again(settings: dict[str, Any], tmp_path: Path) -> None:
    run = luthier.train(**settings, run=tmp_path / "run")
    first = run.scores
    assert "exact_match" in first and "exact_match" not in run.evaluate(generate=0)
    assert "exact_match" not in run.scores, "result.json is written anew"
    assert run.evaluate(generate=3) == first


def test_a_classifier_knows_the_labels_that_other_rows_lack(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    run = luthier.train(
        model=model_folder("llama"),
        data=review_rows(40),
        task="classify",
        train={"steps": 2, "batch_size": 4},
        evaluate={"forgetting": False},
        run=tmp_path / "run",
    )
    scores = run.evaluate([{"text": "A good film.", "label": 1}, {"text": "A bad film.", "label": 1}])
    assert scores.examples == 2 and 0 <= scores["accuracy"].value <= 1
    told = run.generate("A good film.")
    assert "1 " in told and "0 " in told and told.count("%") == 2
    assert run.generate_all(["A good film.", "A bad film."])[0] == told
    with pytest.raises(luthier.InputError, match="is a classifier: its base cannot be asked here"):
        run.generate("A good film.", untuned=True)
    run.close()


def test_an_export_is_proved_and_can_be_loaded(trained: luthier.Run) -> None:
    made = trained.export("merged", prompts=3)
    assert made.path == trained.path / "exports" / "merged" and (made.path / "model.safetensors").is_file()
    assert all(each["held"] and each["prompts"] == 3 for each in made.parity) and made.bytes > 0
    assert "MB" in repr(made) and "from_pretrained" in made._repr_html_() and made.use
    assert made.to_dict()["target"]["name"] == "merged"
    with pytest.raises(luthier.InputError, match=r"dtyp: unknown key \(did you mean 'dtype'\?\)"):
        trained.export("merged", dtyp="float16")
    with pytest.raises(luthier.InputError, match="unknown export 'mergd'"):
        trained.export("mergd")
