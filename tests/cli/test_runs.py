"""Runs seen from another terminal: `luthier runs`, `luthier watch`, and the state they read."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from luthier.cli.terminal import show_runs
from luthier.cli.terminal.curve import braille_curve
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from luthier.runs.state import History, find_runs, state_of
from tests.conftest import luthier
from tests.processes import Command


def made_run(path: Path, taken: int, saved: int = 0, finished: bool = False, steps: int | None = 10) -> RunFolder:
    path.mkdir(parents=True)
    folder = RunFolder(path)
    overrides = [f"run={path}", "data=builtin:reviews", *([f"train.steps={steps}"] if steps else [])]
    config = RunConfig.load(None, overrides)
    folder.ledger.begin(config.model_dump(mode="json"))
    folder.recipe.write_text(config.dump())
    for step in range(1, taken + 1):
        folder.log(line(step))
    if saved:
        (folder.checkpoints / f"step-{saved:06d}").mkdir(parents=True)
    if finished:
        scores = {side: {"exact_match": {"value": value}} for side, value in (("base", 0.1), ("tuned", 0.7))}
        folder.write_json(
            folder.result, {**scores, "primary_metric": "exact_match", "steps": taken, "train_seconds": 9.0}
        )
    return folder


def line(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 4.0 / step, "lr": 1e-3, "grad_norm": 1.0, "tokens": 100, "targets": 9, "seconds": 0.5}


def test_each_state_is_told_from_the_folder_alone(tmp_path: Path) -> None:
    made_run(tmp_path / "finished", 10, finished=True)
    made_run(tmp_path / "stopped", 4, saved=4)
    made_run(tmp_path / "killed", 4, saved=2)
    made_run(tmp_path / "began", 0)
    made_run(tmp_path / "compare" / "arms" / "lora-s0", 10, finished=True)
    damaged = made_run(tmp_path / "damaged", 4)
    damaged.ledger.path.write_text("{")
    (tmp_path / "check-data").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = {Path(state.run).name: state for state in find_runs(tmp_path)}
    assert {name: state.state for name, state in found.items()} == {
        "finished": "finished",
        "stopped": "stopped",
        "killed": "killed",
        "began": "killed",
        "lora-s0": "finished",
        "damaged": "damaged",
    }
    assert (found["finished"].base, found["finished"].tuned, found["finished"].metric) == (0.1, 0.7, "exact_match")
    assert (found["killed"].step, found["killed"].steps, found["killed"].loss) == (4, 10, 1.0)
    assert "run.json" in found["damaged"].why
    with RunFolder(tmp_path / "killed").held():
        assert state_of(tmp_path / "killed").state == "running"
    assert state_of(tmp_path / "killed").state == "killed"
    (tmp_path / "killed" / ".lock").unlink(missing_ok=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_history_reads_what_is_new_and_a_file_that_was_rewound(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", 3)
    history = History(folder)
    assert [each["step"] for each in history.update()] == [1, 2, 3]
    with folder.metrics.open("a") as file:
        file.write(json.dumps(line(4)) + '\n{"step": 5, "lo')  # half a line: the run is writing it
    assert [each["step"] for each in history.update()] == [4]
    with folder.metrics.open("a") as file:
        file.write('ss": 1.0}\n')
    assert [each["step"] for each in history.update()] == [5]
    folder.rewind(2)
    assert [each["step"] for each in history.update()] == [1, 2] == [each["step"] for each in history.lines]


def test_the_list_fits_80_columns_and_json_has_every_fact(tmp_path: Path) -> None:
    made_run(tmp_path / "runs" / "first", 10, finished=True)
    made_run(tmp_path / "runs" / "second", 4, saved=4)
    shown = luthier("runs", cwd=tmp_path, env={"COLUMNS": "80"}).stdout
    assert max(map(len, shown.splitlines())) <= 80
    rows = {words[0]: words for words in map(str.split, shown.splitlines()) if words}
    assert "finished" in rows["first"] and "stopped" in rows["second"] and "→ 70.0 %" in shown and "4/10" in shown
    facts = json.loads(luthier("runs", "--json", cwd=tmp_path).stdout)
    assert {each["run"]: each["state"] for each in facts} == {"runs/first": "finished", "runs/second": "stopped"}
    assert "runs is no folder" in luthier("runs", cwd=tmp_path / "runs" / "first").stderr


def test_a_run_is_watched_while_it_trains_and_until_it_stops(
    model_folder: Callable[..., Path], alpaca_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["train", f"model={model_folder('llama')}", f"data={alpaca_file}", f"run={run}", "evaluate.before=false"]
    training = Command([*words, "train.steps=100000", "train.evaluate_every=99999"])
    training.wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text())
    watching = Command(["watch", run])
    watching.wait_for(lambda: watching.out.count("tokens/s") >= 2)
    assert json.loads(luthier("runs", tmp_path, "--json").stdout)[0]["state"] == "running"
    training.send_signal(signal.SIGINT)
    assert training.wait(60) == 75
    assert watching.wait(60) == 1, watching.err
    assert " left\n" in watching.out and "stopped at step" in watching.out
    assert f"luthier train {run}/recipe.yaml" in watching.out


def test_a_finished_run_and_a_killed_one_are_shown_at_once(tmp_path: Path) -> None:
    made_run(tmp_path / "done", 10, finished=True)
    made_run(tmp_path / "dead", 4, saved=2)
    done, dead = luthier("watch", tmp_path / "done"), luthier("watch", tmp_path / "dead")
    assert done.returncode == 0 and "finished: exact match 10.0 % → 70.0 %" in done.stdout and "left" not in done.stdout
    assert dead.returncode == 1 and "killed at step 4" in dead.stdout
    assert "no run folder" in luthier("watch", tmp_path).stderr


def test_the_screen_has_curve_figures_and_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made_run(tmp_path / "run", 4)
    folder.log({"step": 4, "validation_loss": 1.5, "seconds": 1.0})
    history, screen = History(folder), Console(width=80, height=24, record=True)
    monkeypatch.setattr(show_runs, "console", screen)
    with folder.held():
        state = state_of(folder.path, history)
        screen.print(show_runs.screen(state, history, screen.width, screen.height))
    text = screen.export_text()
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 80
    assert "step 4/10  loss 1.0000" in text and "held-out loss 1.5000, best 1.5000 at step 4" in text
    assert "elapsed 0:03, left 0:03" in text and "◆" in text and "running" in text


def test_the_curve_falls_from_the_first_loss_to_the_last() -> None:
    losses = [(step, 100.0 / step) for step in range(1, 101)]
    lines = braille_curve(losses, [(50, 10.0)], 100, 48, 11).plain.splitlines()
    assert len(lines) == 11 and {len(each) for each in lines} <= {48}
    assert lines[0].startswith("   100 │") and lines[9].startswith("     1 │") and lines[10].endswith("100")
    cells = [[place for place, sign in enumerate(each[8:]) if 0x2800 < ord(sign) < 0x2900] for each in lines[:10]]
    assert cells[0] and cells[9] and max(cells[0]) < min(cells[9])
    assert sum(each.count("◆") for each in lines) == 1 and lines[4][8 + 20] == "◆"


@pytest.mark.parametrize(
    ("losses", "held_out"),
    [([], []), ([(1, 2.0)], []), ([(1, 0.0), (2, -1.0)], []), ([], [(3, 1.0)]), ([(1, 5.0), (2, 5.0)], [])],
)
def test_a_curve_of_few_or_odd_values_is_drawn(losses: list[Any], held_out: list[Any]) -> None:
    assert len(braille_curve(losses, held_out, 10, 40, 8).plain.split("\n")) == 8
