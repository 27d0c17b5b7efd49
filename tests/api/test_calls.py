"""The functions are the commands: same recipe, same errors, same files."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.errors import Busy
from luthier.core.files import lock, sha256
from tests.conftest import alpaca_rows, review_rows, write_jsonl
from tests.conftest import luthier as command
from tests.processes import Command, python


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"modl": "builtin"}, "the arguments: one mistake\n  - modl: unknown key (did you mean 'model'?)"),
        ({"epochs": 1}, "epochs: unknown key (did you mean train.epochs?)"),
        ({"train": {"lrr": 1}}, "train.lrr: unknown key (did you mean 'lr'?)"),
        ({"method": {"name": "lora", "rnk": 8}}, "method.rnk: unknown key (did you mean 'rank'?)"),
        ({"method": "lorra"}, "method: unknown method 'lorra' (did you mean 'lora'?)"),
        ({"train": {"lr": float("inf"), "steps": -1}}, "the arguments: 2 mistakes"),
        ({"train": {"lr": float("inf")}}, "train.lr: should be a finite number"),
        ({"train": 3}, "train: should be a valid dictionary"),
        ({"model": object()}, "model is a object, which no recipe can hold"),
        ({"train": {"a=b": 1}}, "'train.a=b' is no key of a recipe"),
        ({"recipe": "missing.yaml"}, "missing.yaml: no such recipe"),
        ({}, "no data given"),
        ({"data": "missing.jsonl"}, "missing.jsonl: no such file"),
    ],
)
def test_mistakes_are_those_of_the_command_line(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(luthier.InputError) as caught:
        luthier.train(**arguments)
    assert said in str(caught.value)


def test_a_mistake_in_a_notebook_shows_what_to_do_and_no_traceback() -> None:
    with pytest.raises(luthier.InputError) as caught:
        luthier.train(data="missing.jsonl")
    shown = "\n".join(caught.value._render_traceback_())
    assert "InputError" not in shown.splitlines()[1] and "fix: check the path" in shown and "Traceback" not in shown


def test_a_run_is_the_one_that_the_command_line_makes(
    trained: luthier.Run, settings: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "again.yaml"
    recipe.write_text((trained.path / "recipe.yaml").read_text().replace(str(trained.path), str(tmp_path / "again")))
    made = command("train", recipe)
    assert made.returncode == 0, made.stderr
    for name in ("adapter/adapter_model.safetensors", "predictions.jsonl"):
        assert sha256(trained.path / name) == sha256(tmp_path / "again" / name), name
    assert luthier.load(tmp_path / "again").scores.to_dict()["tuned"] == trained.scores.to_dict()["tuned"]


def test_the_same_call_finds_the_run_and_another_is_refused(trained: luthier.Run, settings: dict[str, Any]) -> None:
    before = (trained.path / "result.json").stat().st_mtime_ns
    again = luthier.train(**settings, run=trained.path)
    assert again.path == trained.path and (trained.path / "result.json").stat().st_mtime_ns == before
    with pytest.raises(luthier.InputError, match="holds a run of another recipe"):
        luthier.train(**{**settings, "train": {"steps": 5}}, run=trained.path)


def test_arguments_are_put_over_a_recipe(tmp_path: Path, settings: dict[str, Any]) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("method: {name: lora, rank: 8, dropout: 0.1}\ntrain: {steps: 3, batch_size: 2}\nseed: 5\n")
    rows = {"model": settings["model"], "data": alpaca_rows(8), "recipe": recipe}
    for arguments, wanted in [
        ({"method": {"rank": 2}}, ("lora", 2, 3)),
        ({"method": "lora", "train": {"steps": 9}}, ("lora", 8, 9)),
        ({"method": {"name": "vera", "rank": 3}}, ("vera", 3, 3)),
    ]:
        with luthier.prepare(**rows, **arguments) as ready:
            method = ready._loaded.config.method
            assert (method.name, method.rank, ready.steps) == wanted  # type: ignore[attr-defined]


def test_what_stands_in_a_folder_from_others_is_not_run_unasked(trained: luthier.Run, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("def check(prompt, answer, reference): return 1.0")
    for name in ("recipe.yaml", "environment.json"):
        text = (trained.path / name).read_text().replace("check: null", f"check: {tmp_path}/evil.py")
        (tmp_path / name).write_text(text)
    with pytest.raises(luthier.InputError, match="nobody asked for"):
        luthier.train(recipe=tmp_path / "recipe.yaml", run=tmp_path / "run")


@pytest.mark.slow
def test_nothing_prints_unless_asked(settings: dict[str, Any], tmp_path: Path) -> None:
    """In an interpreter of its own, where transformers has its own bars and warnings; where asked, a fork will do."""
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20))
    train = {"steps": 2, "batch_size": 2}
    code = f"""
import transformers, luthier
level = transformers.logging.get_verbosity()
settings = dict(model={str(settings["model"])!r}, data={str(data)!r}, train={train}, evaluate=dict(generate=2))
run = luthier.train(**settings, run={str(tmp_path / "run")!r}, progress=PROGRESS)
run.generate("hello", max_new_tokens=3); run.evaluate({str(data)!r}); run.export("merged")
assert transformers.logging.get_verbosity() == level and transformers.logging.is_progress_bar_enabled()
"""
    silent = subprocess.run(
        [sys.executable, "-c", code.replace("PROGRESS", "None")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert silent.returncode == 0 and silent.stdout + silent.stderr == "", silent.stdout + silent.stderr
    shutil.rmtree(tmp_path / "run")
    asked = python(
        "import transformers; transformers.logging.set_verbosity_warning()" + code.replace("PROGRESS", "True")
    )
    assert asked.returncode == 0, asked.stderr
    said = asked.stdout + asked.stderr
    assert "training, 2 steps" in said and "Loading weights" not in said


def test_a_listener_of_ones_own_hears_of_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    class Heard(luthier.Progress):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
            self.losses.append(record["loss"])

    heard = Heard()
    run = luthier.train(**settings, run=tmp_path / "run", progress=heard)
    assert heard.losses == [line["loss"] for line in run.history if "loss" in line] and len(heard.losses) == 4


def test_it_works_in_a_thread_and_in_a_loop_that_runs(
    trained: luthier.Run, settings: dict[str, Any], tmp_path: Path
) -> None:
    made: list[luthier.Run] = []
    thread = threading.Thread(target=lambda: made.append(luthier.train(**settings, run=tmp_path / "thread")))
    thread.start()
    thread.join()

    async def inside() -> str:
        assert asyncio.get_running_loop() is not None
        made.append(luthier.train(**settings, run=tmp_path / "loop"))
        return made[-1].generate("hello", max_new_tokens=4)

    assert asyncio.run(inside()) == trained.generate("hello", max_new_tokens=4)
    made[-1].close()
    weights = [sha256(run.path / "adapter" / "adapter_model.safetensors") for run in [trained, *made]]
    assert len(set(weights)) == 1 and len(weights) == 3


def test_check_says_what_train_would_stop_at(settings: dict[str, Any], tmp_path: Path) -> None:
    good = luthier.check(model=settings["model"], data=alpaca_rows(20), out=tmp_path / "good")
    assert not good.stops and good.report.path.is_file() and good.lengths["max"] > 0
    assert json.loads(json.dumps(good.to_dict())) == json.loads((tmp_path / "good" / "data.json").read_text())
    rows = [*alpaca_rows(20), {"instruction": "<script>alert(1)</script>", "output": 7}]
    bad = luthier.check(model=settings["model"], data=rows, out=tmp_path / "bad")
    assert bad.stops and "train would stop" in repr(bad) and len(bad.refusals) == 1
    assert "row" in bad.refusals[0]["where"] or "line 21" in bad.refusals[0]["where"]
    assert "Training would stop" in bad._repr_html_() and "<script>" not in bad._repr_html_()


def test_plan_and_choose_read_no_weights(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    rows = alpaca_rows(30)
    plan = luthier.plan(model="builtin", data=rows, method="lora", train={"steps": 5})
    assert plan.fits and plan.steps == 5 and plan.bytes == sum(plan.parts.values()) and plan.seconds > 0
    assert "fits" in repr(plan) and plan.to_dict()["method"] == "lora" and "<table" in plan._repr_html_()
    choice = luthier.choose(model="builtin", rows=1000, memory="24GB", time="2h")
    assert choice.best == choice.ranked[0]["method"] and choice.best in repr(choice)
    assert choice.evidence[0]["by"] == "Luthier" and choice.evidence[0]["cited"] in choice._repr_html_()
    assert choice.to_dict()["question"]["rows"] == 1000 and "<table" in choice._repr_html_()
    with pytest.raises(luthier.InputError, match="'much' is not a size"):
        luthier.choose(model="builtin", rows=1000, memory="much")


@pytest.mark.slow
def test_compare_after_training_in_the_same_process(settings: dict[str, Any], tmp_path: Path) -> None:
    """OpenMP's workers do not live through a fork, so this would hang if it forked from the thread that trained."""
    rows = write_jsonl(tmp_path / "reviews.jsonl", review_rows(60))
    code = f"""
import json, torch, luthier
torch.set_num_threads(2)
torch.randn(3000, 3000).exp().sum(); torch.randn(600, 600) @ torch.randn(600, 600)
settings = dict(model={str(settings["model"])!r}, data={str(rows)!r}, train=dict(steps=3, batch_size=4))
found = luthier.compare(**settings, methods=["lora", "vera"], run={str(tmp_path / "compare")!r}, workers=1)
frame = found.to_pandas()
assert torch.get_num_threads() == 2
print(json.dumps([found.best.result["method"], sorted(found.runs), list(frame.index), list(frame["status"]), repr(found)]))
print(found._repr_html_().count("<tr>"), found.report)
"""
    ran = python(code, cwd=tmp_path, timeout=240)
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    best, runs, index, status, shown = json.loads(first)
    assert runs == ["lora", "vera"] and set(index) == set(runs) and best in runs and status == ["done"] * 2
    assert shown.startswith("Comparison(") and second == f"4 {tmp_path}/compare/compare.html"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_a_comparison_with_its_processes(settings: dict[str, Any], tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "reviews.jsonl", review_rows(60))
    code = f"""
import luthier
train = dict(steps=100_000, batch_size=4, save_every=10)
settings = dict(model={str(settings["model"])!r}, data={str(rows)!r}, train=train, evaluate=dict(forgetting=False))
luthier.compare(**settings, methods=["lora"], run={str(tmp_path / "compare")!r}, workers=1)
"""
    run = tmp_path / "compare" / "arms" / "lora-s0"
    process = Command([], code=code)
    try:
        process.wait_for(lambda: list(run.glob("checkpoints/step-*")))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0 and "KeyboardInterrupt" in process.err
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert not luthier.load(run).finished and len(luthier.load(run).history) >= 10
    with lock(run, Busy("held by a process that is left")):
        pass


def test_load_finds_a_run_or_says_what_is_near(trained: luthier.Run) -> None:
    assert luthier.load(str(trained.path)).scores == trained.scores
    with pytest.raises(luthier.InputError, match="did you mean 'run'"):
        luthier.load(trained.path.with_name("rum"))


def test_load_makes_a_run_of_an_adapter(trained: luthier.Run, settings: dict[str, Any], tmp_path: Path) -> None:
    run = luthier.load(
        trained.path / "adapter", base=str(settings["model"]), data=alpaca_rows(10), run=tmp_path / "run"
    )
    assert run.finished and "adopted" in run.result and not run.scores
    scores = run.evaluate(forgetting=False, generate=0)
    assert scores["loss"].value > 0 and run.scores["loss"] == scores["loss"]
