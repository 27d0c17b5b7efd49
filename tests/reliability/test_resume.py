"""Killed and started again by the same command, a run ends as one that was never stopped, for every method."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from tools.soak import differences

from luthier.core.errors import Busy, ConfigError, InputError
from luthier.methods.base import METHODS
from luthier.runs.folder import RunFolder
from tests.conftest import ROOT
from tests.methods.zoo import SPECS, fused, method
from tests.processes import python
from tests.reliability.conftest import LORA, Heard, Start

AFTER = ["result.json", "adapter", "model", "predictions.jsonl", "loss.png", "report.html"]
"""What a run writes behind its last step."""


def killed_behind(run: Path, step: int, to: Path) -> Path:
    """A copy of a finished run as SIGKILL leaves it in step `step` + 2, whose line is half written."""
    shutil.copytree(run, to)
    for name in AFTER:
        path = to / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for checkpoint in (to / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    lines = (to / "metrics.jsonl").read_text().splitlines(keepends=True)
    there = [line for line in lines if json.loads(line)["step"] <= step + 1]
    (to / "metrics.jsonl").write_text("".join(there) + lines[len(there)][:17])
    recipe = (to / "recipe.yaml").read_text()
    (to / "recipe.yaml").write_text(re.sub(r"(?m)^run: .*$", f"run: {to}", recipe))
    return to


def test_no_method_is_left_out() -> None:
    assert {method(name).name for name in SPECS} == set(METHODS.names())


@pytest.mark.matrix(name=9)  # test_runs stops and resumes each method, too
@pytest.mark.parametrize("name", SPECS)
def test_every_method_goes_on_bit_for_bit(name: str, start: Start, shelf: Path, tmp_path: Path) -> None:
    """With the model's and the method's dropout, packing where it can be, accumulation, in the middle of an epoch."""
    tuner = method(name)
    own = [f"method={name.split(' ', maxsplit=1)[0]}", *(f"method.{key}={value}" for key, value in SPECS[name].items())]
    if name == "fusion":
        own.append(f"method.adapters={','.join(fused('llama', shelf / 'model'))}")
    own += ["method.dropout=0.1"] * ("dropout" in type(tuner).model_fields) + [f"train.packing={tuner.packs}"]
    start(tmp_path / "whole", *own)
    run = killed_behind(tmp_path / "whole", 3, tmp_path / "killed")
    heard = Heard()
    start(run, *own, progress=heard)
    assert "resuming from step 3 of 8" in heard.said
    assert differences(tmp_path / "whole", run) == []


@pytest.mark.parametrize(
    "own",
    [
        ["task=complete", "data.format.name=alpaca"],
        ["train.optimizer=sgd", "train.schedule=linear"],
        ["train.optimizer=adamw_8bit"],
        ["train.precision=bf16"],
        ["train.micro_tokens=60", "train.group_by_length=true"],
        ["train.gradient_checkpointing=true"],
    ],
    ids=lambda own: own[0],
)
def test_every_way_to_train_goes_on_bit_for_bit(own: list[str], start: Start, tmp_path: Path) -> None:
    own = ["method.rank=2", "method.dropout=0.1", *own]
    start(tmp_path / "whole", *own)
    run = killed_behind(tmp_path / "whole", 6, tmp_path / "killed")
    start(run, *own)
    assert differences(tmp_path / "whole", run) == []


def test_killed_at_random_moments_and_while_checkpoints_are_written() -> None:
    """5 times here; `python tools/soak.py` does it 200 times."""
    program = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = python(program, ROOT / "tools" / "soak.py", "--kills", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert int(said["kills"]) >= 5 and int(said["in the write of a checkpoint"]) > 0
    assert said["runs"].endswith("different from the reference: 0")


def test_the_soak_would_notice_a_difference(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    assert differences(whole, run) == []
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines.replace('"targets": ', '"targets": 1', 1))
    (run / "checkpoints" / ".staging-step-000003-7").mkdir()
    (run / "checkpoints" / ".staging-step-000003-7" / "state.json").write_text("{}")
    assert len(differences(whole, run)) == 2


def test_the_same_seed_gives_the_same_run_and_another_does_not(whole: Path, start: Start, tmp_path: Path) -> None:
    start(tmp_path / "again", *LORA)
    assert differences(whole, tmp_path / "again") == []
    start(tmp_path / "other", *LORA, "seed=1")
    assert "other: adapter/adapter_model.safetensors" in differences(whole, tmp_path / "other")


@pytest.mark.parametrize("victim", ["flipped bit", "no optimizer", "renamed key", "cut manifest", "empty folder"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    victim: str, whole: Path, start: Start, tmp_path: Path
) -> None:
    run = killed_behind(whole, 4, tmp_path / "run")
    newest = run / "checkpoints" / "step-000004"
    weights = newest / "weights" / "adapter_model.safetensors"
    match victim:
        case "flipped bit":
            data = bytearray(weights.read_bytes())
            data[-9] ^= 4
            weights.write_bytes(data)
        case "no optimizer":
            (newest / "state.safetensors").unlink()
        case "renamed key":
            weights.write_bytes(weights.read_bytes().replace(b"lora_A", b"lora_Z", 1))
        case "cut manifest":
            (newest / "manifest.json").write_text((newest / "manifest.json").read_text()[:100])
        case "empty folder":
            shutil.rmtree(newest)
            newest.mkdir()
    heard = Heard()
    start(run, *LORA, progress=heard)
    assert any("step-000004 is damaged" in text for text in heard.said) and "resuming from step 3 of 8" in heard.said
    shutil.rmtree(run / "checkpoints" / "step-000004.corrupt")
    assert differences(whole, run) == []


def test_with_all_checkpoints_damaged_a_run_restarts(whole: Path, start: Start, tmp_path: Path) -> None:
    run = killed_behind(whole, 2, tmp_path / "run")
    for checkpoint in (run / "checkpoints").glob("step-*"):
        (checkpoint / "state.json").write_text("{}")
    start(run, *LORA)
    for aside in (run / "checkpoints").glob("*.corrupt"):
        shutil.rmtree(aside)
    assert differences(whole, run) == []


def test_renamed_weights_are_refused_even_under_a_right_manifest(whole: Path, start: Start, tmp_path: Path) -> None:
    from luthier.core.files import staged

    run = killed_behind(whole, 3, tmp_path / "run")
    with staged(run / "checkpoints" / "step-000004", RunFolder(run).ledger.run, 4) as folder:
        shutil.copytree(run / "checkpoints" / "step-000003", folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        weights = folder / "weights" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes().replace(b"lora_A", b"lora_Z"))
    with pytest.raises(InputError, match="weights do not match this model"):
        start(run, *LORA)


def test_a_damaged_best_checkpoint_is_told_and_the_last_weights_are_kept(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 2.0])
    monkeypatch.setattr("luthier.training.trainer.held_out_loss", lambda *_: next(losses))

    def damage(step: int) -> None:
        if step == 6:
            (tmp_path / "run" / "checkpoints" / "step-000004" / "weights" / "adapter_config.json").write_text("{}")

    heard = Heard(damage)
    result = start(tmp_path / "run", "method.rank=2", progress=heard)
    assert result["kept_step"] == 8 and not result["kept_best"]
    assert any("step-000004, the best one, is damaged (weights/adapter_config.json" in text for text in heard.said), (
        heard.said
    )


def test_what_killed_processes_leave_is_cleared_away(whole: Path, start: Start, tmp_path: Path) -> None:
    run = killed_behind(whole, 3, tmp_path / "run")
    for name in ("checkpoints/.staging-step-000004-77", "checkpoints/.trash-step-000001", ".staging-adapter-77"):
        (run / name).mkdir()
        (run / name / "half.safetensors").write_bytes(b"half")
    (run / ".result.json.staging").write_text("{")
    start(run, *LORA)
    assert differences(whole, run) == []


def test_a_kill_between_a_checkpoint_and_its_rotation_leaves_none_too_many(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["method.rank=2", "train.keep=2", "data.validation=none"]
    with monkeypatch.context() as patch:
        patch.setattr("luthier.training.checkpoint.rotate", lambda *_: None)  # killed there, at each step
        start(tmp_path / "run", *own)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 8
    for name in AFTER:
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    start(tmp_path / "run", *own)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000007", "step-000008"]


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".environment.json.staging"], [".lock", "environment.json"]])
def test_a_kill_at_the_very_start_does_not_block_the_folder(left: list[str], start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_text("{")
    start(tmp_path / "run", "method.rank=2", "train.steps=1")
    assert (tmp_path / "run" / "result.json").is_file()


def test_a_lost_line_of_metrics_is_told(whole: Path, start: Start, tmp_path: Path) -> None:
    run = killed_behind(whole, 4, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_bytes("\n".join(["17", "\x00\x00", *lines[2:]]).encode() + b"\xff\xfe\n")
    heard = Heard()
    start(run, *LORA, progress=heard)
    assert any("metrics.jsonl: the lines of 2 steps are lost" in text for text in heard.said)
    assert differences(whole, run) == ["run: metrics.jsonl"], "and nothing else is lost"


@pytest.mark.parametrize("changed", ["train.lr=1e-3", "seed=5", "method.rank=4", "train.batch_size=8"])
def test_another_recipe_does_not_go_on_in_an_unfinished_run(
    changed: str, whole: Path, start: Start, tmp_path: Path
) -> None:
    run = killed_behind(whole, 4, tmp_path / "run")
    with pytest.raises(InputError, match=rf"holds a run of another recipe:\n  - {changed.partition('=')[0]}: "):
        start(run, *LORA, changed)
    start(run, *LORA, "train.on_nan=skip", "train.log_every=3")
    assert differences(whole, run) == [], "what changes no number may change"


def test_an_error_on_the_way_back_deletes_nothing(
    whole: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed_behind(whole, 4, tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(
            "luthier.pipeline.train.load_base", lambda *_, **__: (_ for _ in ()).throw(InputError("no such base"))
        )
        with pytest.raises(InputError, match="no such base"):
            start(run, *LORA)
        with pytest.raises(InputError, match="no such base"):
            start(tmp_path / "new", *LORA)
    assert (run / "checkpoints" / "step-000004").is_dir()
    assert not (tmp_path / "new").exists(), "a run that never began leaves no folder"
    start(run, *LORA)
    assert differences(whole, run) == ["run: metrics.jsonl"]


def test_errors_know_their_place() -> None:
    assert issubclass(Busy, InputError) and Busy("x").exit_code == 2 and issubclass(ConfigError, InputError)
