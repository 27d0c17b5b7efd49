"""The real packages, offline: what they have stored after a kill in mid-run and a resume is read back.

tensorboardX is in the development environment; `make test-trackers` has all of them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import EXTRAS
from luthier.core.files import read_object
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from luthier.tracking.base import TRACKERS
from tests.conftest import ROOT, alpaca_rows, luthier, write_jsonl
from tests.tracking.readers import READERS, Points

STEPS, KILLED_BEHIND = 24, 16
HERE = [name for name in TRACKERS.names() if all(map(find_spec, TRACKERS.get(name).packages))]


@pytest.fixture(params=TRACKERS.names())
def tracker(request: pytest.FixtureRequest) -> str:
    """Each tracker whose packages are here."""
    name: str = request.param
    if name not in HERE:
        pytest.skip(f"not installed: {' '.join(EXTRAS[name])}; make test-trackers has it")
    return name


def fast() -> None:
    """Looks at metrics.jsonl ten times a second, and writes down whom this process wants to reach."""
    from luthier.pipeline import track

    track.EVERY = 0.1

    def reached(event: str, given: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            place = given[1] if event == "socket.connect" else given[0]
            host = str(place[0] if isinstance(place, tuple) else place)
            if not host.startswith(("/", "127.", "::1", "localhost", "b'")):
                with Path("reached.txt").open("a") as file:
                    file.write(f"{event} {place}\n")

    sys.addaudithook(reached)


def die_in_mid_run() -> None:
    """SIGKILL behind step 16, when each tracker has got some steps, and not all."""
    from luthier.training.trainer import Trainer

    fast()
    log = Trainer._log

    def dying(self: Any, record: dict[str, Any]) -> None:
        log(self, record)
        if record["step"] == KILLED_BEHIND // 2:
            ends = time.monotonic() + 200
            while time.monotonic() < ends:
                notes = read_object(self.folder.trackers) if self.folder.trackers.is_file() else {}
                if sum(entry["step"] > 0 for entry in notes.values()) == len(HERE):
                    break
                time.sleep(0.05)
        time.sleep(0.05)
        if record["step"] == KILLED_BEHIND:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer._log = dying


@pytest.fixture(scope="module")
def killed(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every tracker that is here, killed and resumed; then sent once more to each."""
    if not HERE:
        pytest.skip("no tracker is installed; make test-trackers has all of them")
    beside = tmp_path_factory.mktemp("tracked")
    write_jsonl(beside / "rows.jsonl", alpaca_rows(40))
    own = [f"model={model_folder('llama')}", "data=rows.jsonl", "run=runs/r", "method.rank=2", "data.workers=1"]
    own += [f"train.steps={STEPS}", "train.save_every=6", "train.evaluate_every=6", "evaluate.generate=4"]
    own += [f"train.track=[{','.join(HERE)}]"]
    first = luthier("train", *own, cwd=beside, before=die_in_mid_run)
    assert first.returncode == -signal.SIGKILL, first.stdout + first.stderr
    second = luthier("train", *own, cwd=beside, before=fast)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming from step 12" in second.stdout and "! the tracker" not in second.stdout + second.stderr, (
        second.stdout
    )
    assert "ERROR" not in second.stdout + second.stderr, second.stdout
    again = luthier("track", "runs/r", cwd=beside)
    assert again.returncode == 0 and again.stdout.count("has the whole run already") == len(HERE), again.stdout
    assert not (beside / "reached.txt").exists(), (beside / "reached.txt").read_text()
    return beside / "runs"


def truth(run: Path) -> Points:
    """The same values in metrics.jsonl."""
    history = RunFolder(run).history()
    return {
        "train/loss": [(line["step"], line["loss"]) for line in history if "loss" in line],
        "validation/loss": [(line["step"], line["validation_loss"]) for line in history if "validation_loss" in line],
    }


def test_each_step_once_after_a_kill_and_a_resume(tracker: str, killed: Path) -> None:
    stored, true = READERS[tracker](killed), truth(killed / "r")
    assert [step for step, _ in true["train/loss"]] == [*range(1, STEPS + 1)]
    for name, points in true.items():
        assert [step for step, _ in stored[name]] == [step for step, _ in points], name
        assert [value for _, value in stored[name]] == pytest.approx([value for _, value in points], rel=1e-6), name
    steps = [step for step, _ in stored["train/loss"]]
    for name in ("train/learning_rate", "train/grad_norm", "train/tokens_per_second", "memory/process_gb"):
        assert [step for step, _ in stored[name]] == steps, name
    notes = read_object(killed / "r" / "trackers.json")[tracker]
    assert (notes["step"], notes["part"], notes["state"]) == (STEPS, 2, "finished")


def test_scores_answers_curve_report_and_end(tracker: str, killed: Path) -> None:
    stored, result = READERS[tracker](killed), read_object(killed / "r" / "result.json")
    name = result["primary_metric"]
    for side in ("base", "tuned"):
        value = result[side][name]["value"]
        if tracker == "wandb":
            assert stored[f"summary {side}/{name}"][-1][1] == pytest.approx(value)
            assert stored[f"summary {side}/{name}_low"][-1][1] == pytest.approx(result[side][name]["low"])
        else:
            assert stored[f"{side}/{name}"] == [(STEPS, pytest.approx(value))]
    if tracker == "mlflow":
        files = {path for _, path in stored["files"]}
        assert files == {"samples.md", "scores.md", "loss.png", "report.html"}
        assert stored["state"] == [(0, "FINISHED")] and stored["config"][0][1]["train.steps"] == str(STEPS)
        return
    for what in ("samples", "scores", "loss"):
        assert len(stored[what]) == 1, what
    if tracker == "swanlab":
        assert stored["state"] == [(0, "finished")] and stored["experiments"] == [(0, "r")]
        folder = next(killed.glob("swanlog/run-*"))
        assert "prompt: " in stored["samples"][0][1][0] and (folder / "media/image").is_dir()
        assert "hostname" not in (folder / "files/swanlab-metadata.json").read_text()
    elif tracker == "tensorboard":
        assert stored["state"] == [(0, "finished")] and "| train.steps | 24 |" in stored["config"][0][1]
        assert stored["loss"][0][1].encoded_image_string.startswith(b"\x89PNG")
    elif tracker == "wandb":
        assert stored["exit"] == [(0, 0)] and stored["summary state"][-1] == (0, "finished")
        assert len(stored["report"]) == 1
    else:
        assert stored["state"] == [(STEPS, "finished")] and len(stored["runs"]) == 1 and len(stored["report"]) == 1


def test_a_stopped_run_is_marked_so_and_goes_on(tracker: str, killed: Path, tmp_path: Path) -> None:
    """Sent as it was when it was killed, by `luthier track`, and then to its end."""
    run = tmp_path / "runs" / "r"
    shutil.copytree(killed / "r", run)
    (run / "trackers.json").unlink()
    (run / "result.json").rename(tmp_path / "result.json")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:10]) + lines[10][:20])
    done = luthier("track", "runs/r", "--to", tracker, cwd=tmp_path)
    assert done.returncode == 0 and f"{tracker}: stopped, up to step 9" in done.stdout, done.stdout + done.stderr
    stored = READERS[tracker](tmp_path / "runs")
    assert [step for step, _ in stored["train/loss"]] == [*range(1, 10)]
    ends = {"swanlab": "ended", "mlflow": "KILLED"}
    if tracker == "wandb":
        assert stored["exit"] == [(0, 1)]
    else:
        assert stored["state"] == [(stored["state"][0][0], ends.get(tracker, "stopped"))]
    (run / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "result.json").rename(run / "result.json")
    done = luthier("track", "runs/r", "--to", tracker, cwd=tmp_path)
    assert done.returncode == 0 and f"{tracker}: finished, up to step {STEPS}" in done.stdout, done.stdout + done.stderr
    assert [step for step, _ in READERS[tracker](tmp_path / "runs")["train/loss"]] == [*range(1, STEPS + 1)]


def test_the_class_of_the_docs_follows_a_run(
    model_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Handed over as a Python object; a second start of the finished run says nothing more to it."""
    monkeypatch.setattr("luthier.pipeline.track.EVERY", 0.1)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tracking.md").read_text(), re.DOTALL)
    page: dict[str, Any] = {"__name__": "mine"}
    exec(block, page)
    file = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(30))
    own = [f"model={model_folder('llama')}", f"data={file}", f"run={tmp_path / 'run'}", "train.steps=3"]
    config = RunConfig.load(None, [*own, "evaluate.generate=0", "evaluate.before=false", "data.workers=1"])
    train(config, trackers=[page["Prints"]()])
    lines = capsys.readouterr().out.splitlines()
    notes = read_object(tmp_path / "run" / "trackers.json")["Prints"]
    assert lines[0] == f"run {notes['id']} begins" and notes["state"] == "finished"
    losses = [line["loss"] for line in RunFolder(tmp_path / "run").history() if "loss" in line]
    assert [f"{step} {loss}" for step, loss in enumerate(losses, 1)] == [line for line in lines if "None" not in line][
        1:
    ]
    train(config, trackers=[page["Prints"]()])
    assert capsys.readouterr().out == ""
