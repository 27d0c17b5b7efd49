"""A job of several ranks that is stopped, killed as a whole or out of disk: rerun, it ends as if undisturbed."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core import files
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.training.step import Loop
from luthier.training.trainer import Trainer
from tests.conftest import alpaca_rows, write_jsonl
from tests.training.ranks import trained_on
from tests.training.test_training import curve, same, weights

STEPS, SAVED = 8, 4
"""Steps of a run, and the checkpoint that is disturbed."""


@pytest.fixture
def recipe(model_folder: Callable[..., Path], tmp_path: Path) -> list[str]:
    """A short run with dropout and a checkpoint every two steps."""
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21))
    recipe = [f"model={model_folder('llama')}", f"data={data}", "data.validation=none", "method=lora"]
    recipe += ["method.dropout=0.2", f"train.steps={STEPS}", "train.batch_size=6", "train.lr=1e-3"]
    return [*recipe, "train.save_every=2", "train.keep=9"]


def test_a_run_stopped_on_four_ranks_goes_on_with_eight(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run, log = [*recipe, "method.dropout=0"], tmp_path / "several", Trainer._log
    train(RunConfig.load(None, [*recipe, f"run={tmp_path / 'one'}"]))

    def stopping(self: Trainer, record: dict[str, float]) -> None:
        log(self, record)
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log", stopping)
        stopped = trained_on(4, run, recipe, timeout=60)
    assert stopped[0]["code"] == 143 and len(curve(run)) == 3, stopped[0]
    leader, *others = trained_on(8, run, recipe)
    assert "value" in leader, leader["error"]
    assert others == [{"value": {}}] * 7
    assert curve(run) == pytest.approx(curve(tmp_path / "one"), rel=1e-6)
    for key, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(run)[key], value, rtol=0, atol=1e-5)


def test_all_ranks_killed_at_once_it_ends_as_if_undisturbed(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a gradient that is not taken yet, a step that is not logged yet, and in the midst of a checkpoint."""
    trained_on(2, tmp_path / "whole", recipe)
    moments: list[tuple[Any, str, Callable[..., bool], int]] = [
        (Loop, "gradient", lambda *_, **__: True, 6),
        (Loop, "take", lambda *_, **__: True, 5),
        (files, "sync", lambda path: f"step-{SAVED:06}" in str(path), 2),
    ]
    for owner, name, counts, number in moments:
        run, here = tmp_path / name, tmp_path / f"{name}.here"

        def kill_all(processes: list[Any], here: Path = here) -> None:
            until = time.monotonic() + 60
            while not here.is_file() and time.monotonic() < until:
                time.sleep(0.01)
            for process in processes:
                process.kill()

        with monkeypatch.context() as patch:
            standing_behind(patch, owner, name, counts, number, here)
            assert trained_on(2, run, recipe, alive=kill_all, timeout=60) == [{}, {}]
        assert here.is_file() and len(curve(run)) < STEPS and not (run / "result.json").exists(), name
        leader, follower = trained_on(2, run, recipe)
        assert "value" in leader, leader["error"]
        assert follower == {"value": {}}
        assert curve(run) == curve(tmp_path / "whole") and same(run, tmp_path / "whole"), name


def standing_behind(
    patch: pytest.MonkeyPatch, owner: Any, name: str, counts: Callable[..., bool], number: int, here: Path
) -> None:
    """Let a process stand still behind the call of this number, of those that count, and leave a file."""
    own, calls = getattr(owner, name), [0]

    def standing(*args: Any, **more: Any) -> Any:
        found = own(*args, **more)
        calls[0] += counts(*args, **more)
        if calls[0] == number:
            here.touch()
            time.sleep(120)
        return found

    patch.setattr(owner, name, standing)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_disk_that_is_full_for_a_checkpoint_is_one_error_and_nobody_hangs(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: str
) -> None:
    recipe, run, sync = [*recipe, f"train.parallel={parallel}"], tmp_path / "run", files.sync
    trained_on(2, tmp_path / "whole", recipe)

    def full(path: Path) -> None:
        if f"step-{SAVED:06}" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", full)
        leader, follower = trained_on(2, run, recipe, timeout=60)
    assert leader["code"] == 2 and leader["error"].startswith("NoSpace: no space left on the disk"), leader
    assert follower.get("error", "Followed").startswith("Followed"), "only the leader speaks"
    kept = [path.name for path in sorted((run / "checkpoints").glob("step-*"))]
    assert kept == ["step-000002"] and not (run / "result.json").exists()
    leader, _ = trained_on(2, run, recipe)
    assert "value" in leader, leader["error"]
    assert curve(run) == curve(tmp_path / "whole") and same(run, tmp_path / "whole")
