"""Checkpoints are whole or not there."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from luthier.core import files
from luthier.core.errors import InputError, NoSpace
from luthier.training import checkpoint as checkpoints


def write(folder: Path, step: int, scale: float = 1.0) -> Path:
    target = folder / f"step-{step:06d}"
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)

    def weights(to: Path) -> None:
        to.mkdir()
        (to / "w.bin").write_bytes(bytes([int(scale)]) * 100)

    checkpoints.write_checkpoint(target, weights, (optimizer, schedule, None), {"step": step}, "this run")
    return target


def flip(file: Path, place: int = 50) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_the_newest_whole_one_is_found_and_broken_ones_are_named_and_put_aside(tmp_path: Path) -> None:
    first, second, third = (write(tmp_path, step) for step in (5, 10, 15))
    assert checkpoints.newest(tmp_path) == (third, [])
    flip(third / "weights" / "w.bin")  # one bit
    (second / "state.json").unlink()
    found, broken = checkpoints.newest(tmp_path)
    assert found == first and len(broken) == 2
    assert "step-000015 is damaged (weights/w.bin has another SHA-256" in broken[0]
    assert "step-000010 is damaged (state.json is missing)" in broken[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000005",
        "step-000010.corrupt",
        "step-000015.corrupt",
    ]
    assert checkpoints.newest(tmp_path) == (first, []), "what was put aside is not looked at again"


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, 999_999)
    last = write(tmp_path, 1_000_000)
    assert checkpoints.newest(tmp_path)[0] == last
    checkpoints.rotate(tmp_path, 1, None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1000000"]


@pytest.mark.parametrize("victim", ["manifest.json", "state.json", "state.safetensors", "weights/w.bin"])
def test_any_missing_cut_or_changed_file_is_named(tmp_path: Path, victim: str) -> None:
    folder = write(tmp_path, 1)
    whole = (folder / victim).read_bytes()
    assert files.fault(folder) == ""
    (folder / victim).write_bytes(whole[:-1])
    assert victim in files.fault(folder)
    (folder / victim).unlink()
    assert files.fault(folder) == f"{victim} is missing"
    (folder / victim).write_bytes(b"")
    assert victim in files.fault(folder)
    (folder / victim).write_bytes(whole)
    assert files.fault(folder) == ""


def test_every_single_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    whole = (folder / "manifest.json").read_bytes()
    for place, byte in enumerate(whole):
        if not bytes([byte]).isspace():
            (folder / "manifest.json").write_bytes(whole[:place] + bytes([byte ^ 1]) + whole[place + 1 :])
            assert files.fault(folder, run="this run"), f"byte {place}"


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"files": {}}', '{"files": []}', '{"files": {"state.json": 1}}', "null"]
)
def test_a_manifest_that_says_nothing_proves_nothing(tmp_path: Path, manifest: str) -> None:
    folder = write(tmp_path, 1)
    (folder / "manifest.json").write_text(manifest)
    assert files.fault(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.name != "manifest.json":
            path.unlink() if path.is_file() else path.rmdir()
    assert files.fault(folder), "an empty folder is no checkpoint either"


def test_a_file_more_or_less_than_the_manifest_names_is_a_fault(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / "weights" / "extra.safetensors").write_bytes(b"who put this here?")
    assert files.fault(folder) == "weights/extra.safetensors is not in its manifest"
    (folder / "weights" / "extra.safetensors").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["state.safetensors"]  # left out, it could be anything
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert files.fault(folder) == "state.safetensors is not in its manifest"


def test_stray_files_among_checkpoints_do_not_stop_a_resume(tmp_path: Path) -> None:
    kept = write(tmp_path, 3)
    (tmp_path / "step-000009").write_text("a file, not a folder")
    (tmp_path / "step-000010").mkdir()
    (tmp_path / "step-latest").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    found, broken = checkpoints.newest(tmp_path)
    assert found == kept and len(broken) == 2


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    kept = write(tmp_path, 1)

    def fail(to: Path) -> None:
        to.mkdir()
        (to / "w.bin").write_bytes(b"half")
        raise RuntimeError("safetensors: I/O error") from OSError(errno.ENOSPC, "No space left on device")

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    with pytest.raises(NoSpace, match="what was saved before is whole"):
        checkpoints.write_checkpoint(tmp_path / "step-000002", fail, (optimizer, schedule, None), {})
    assert [path.name for path in tmp_path.iterdir()] == [kept.name] and not files.fault(kept)


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step)
    checkpoints.rotate(tmp_path, 2, "step-000002")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000004", "step-000005"]


def test_rotation_counts_no_damaged_one_and_never_deletes_the_last_good_one(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    for step in (3, 4):  # a disk that lost files: the newest two are worth nothing
        (tmp_path / f"step-{step:06d}" / "state.safetensors").unlink()
    checkpoints.rotate(tmp_path, 1, None)
    assert not files.fault(tmp_path / "step-000002")
    assert checkpoints.newest(tmp_path)[0] == tmp_path / "step-000002"


def test_a_kill_while_a_checkpoint_takes_the_place_of_another_loses_neither(tmp_path: Path) -> None:
    """The same step is written once more where a stop came between a step and its evaluation."""
    target = write(tmp_path, 4)
    target.rename(tmp_path / ".old-step-000004")  # killed here, between the two renames
    (tmp_path / ".staging-step-000004-77").mkdir()
    (tmp_path / ".trash-step-000002").mkdir()
    files.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000004"] and not files.fault(target)
    (tmp_path / ".old-step-000004").mkdir()  # killed behind both: what is old goes
    files.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000004"] and not files.fault(target)
    write(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000004"] and not files.fault(target)


def test_everything_is_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    rename = Path.rename
    monkeypatch.setattr(files, "sync", lambda path: events.append(("sync", path.name)))
    monkeypatch.setattr(Path, "rename", lambda self, to: events.append(("rename", to.name)) or rename(self, to))
    write(tmp_path, 1)
    renamed = events.index(("rename", "step-000001"))
    synced = {name for what, name in events[:renamed] if what == "sync"}
    assert {"manifest.json", "state.json", "state.safetensors", "w.bin", "weights"} < synced
    assert any(name.startswith(".staging-") for name in synced), "the folder's own names too"
    assert events[renamed + 1] == ("sync", tmp_path.name), "and the new name"


def test_renamed_tensors_are_refused_even_under_a_right_manifest(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write(tmp_path, 1)
    tensors = load_file(folder / "state.safetensors")
    tensors["optimizer.0.exp_average"] = tensors.pop("optimizer.0.exp_avg")
    save_file(tensors, folder / "state.safetensors")
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    with pytest.raises(InputError, match=r"2 tensors of state\.safetensors do not match"):
        checkpoints.read_checkpoint(folder, lambda _: None, (optimizer, schedule, None))


def test_all_generators_go_on_where_they_were(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draws() -> list[float]:
        return [
            random.random(),
            random.gauss(),
            float(np.random.rand()),
            float(np.random.randn()),
            float(torch.rand(1)),
        ]

    draws()
    folder = write(tmp_path, 1)
    first = draws()
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    draws()
    checkpoints.read_checkpoint(folder, lambda _: None, (optimizer, schedule, None))
    assert draws() == first


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adafactor", "rmsprop"])
def test_optimizer_and_random_states_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    from luthier.training.settings import TrainConfig
    from luthier.training.step import build_optimizer, build_schedule

    def session() -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 4)
        config = TrainConfig(optimizer=name, weight_decay=0.1)
        optimizer = build_optimizer(layer, config, 0.01)
        return layer, optimizer, build_schedule(optimizer, config, 20)

    def step(
        layer: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR
    ) -> None:
        layer(torch.rand(2, 4)).square().sum().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    layer, optimizer, schedule = session()
    for _ in range(3):
        step(layer, optimizer, schedule)
    target = tmp_path / "step-000003"

    def save(to: Path) -> None:
        to.mkdir()
        torch.save(layer.state_dict(), to / "w.pt")

    checkpoints.write_checkpoint(target, save, (optimizer, schedule, None), {"step": 3})
    for _ in range(4):
        step(layer, optimizer, schedule)

    other, optimizer2, schedule2 = session()
    with torch.no_grad():  # poison, so that only a true restore can pass
        for parameter in other.parameters():
            parameter.fill_(9)
    state = checkpoints.read_checkpoint(
        target, lambda weights: other.load_state_dict(torch.load(weights / "w.pt")), (optimizer2, schedule2, None)
    )
    assert state["step"] == 3
    for _ in range(4):
        step(other, optimizer2, schedule2)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))


def test_no_pickle_is_in_a_checkpoint(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "state.json", "state.safetensors", "weights"}
    json.loads((folder / "state.json").read_text())


def test_an_optimizer_of_other_groups_is_refused(tmp_path: Path) -> None:
    """Versions may divide parameters into other groups; torch would give them each other's states."""

    def advanced(*sizes: int) -> checkpoints.Advanced:
        groups = [{"params": [torch.nn.Parameter(torch.ones(2)) for _ in range(size)]} for size in sizes]
        optimizer = torch.optim.AdamW(groups)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0), None

    checkpoints.write_checkpoint(tmp_path / "step-1", lambda folder: folder.mkdir(), advanced(2, 1), {"step": 1})
    assert checkpoints.read_checkpoint(tmp_path / "step-1", lambda folder: None, advanced(2, 1)) == {"step": 1}
    with pytest.raises(InputError, match="other groups of parameters"):
        checkpoints.read_checkpoint(tmp_path / "step-1", lambda folder: None, advanced(1, 2))
