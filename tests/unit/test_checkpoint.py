"""Checkpoints are whole or not there."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from luthier.errors import NoSpace
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

    checkpoints.write(target, weights, optimizer, schedule, None, {"step": step})
    return target


def test_the_newest_whole_one_is_found_and_broken_ones_are_put_aside(tmp_path: Path) -> None:
    first, second, third = (write(tmp_path, step) for step in (5, 10, 15))
    assert checkpoints.newest(tmp_path) == (third, [])
    data = bytearray((third / "weights" / "w.bin").read_bytes())
    data[50] ^= 1  # one flipped bit
    (third / "weights" / "w.bin").write_bytes(data)
    (second / "state.json").unlink()
    found, broken = checkpoints.newest(tmp_path)
    assert found == first and [path.name for path in broken] == ["step-000015.corrupt", "step-000010.corrupt"]


@pytest.mark.parametrize("victim", ["manifest.json", "state.json", "state.safetensors", "weights/w.bin"])
def test_any_missing_or_cut_file_makes_it_invalid(tmp_path: Path, victim: str) -> None:
    folder = write(tmp_path, 1)
    assert checkpoints.valid(folder)
    (folder / victim).write_bytes((folder / victim).read_bytes()[:-1])
    assert not checkpoints.valid(folder)
    (folder / victim).unlink()
    assert not checkpoints.valid(folder)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    kept = write(tmp_path, 1)

    def fail(to: Path) -> None:
        to.mkdir()
        (to / "w.bin").write_bytes(b"half")
        raise RuntimeError("safetensors: I/O error") from OSError(errno.ENOSPC, "No space left on device")

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    with pytest.raises(NoSpace, match="what was saved before is whole"):
        checkpoints.write(tmp_path / "step-000002", fail, optimizer, schedule, None, {})
    assert [path.name for path in tmp_path.iterdir()] == [kept.name] and checkpoints.valid(kept)


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step)
    checkpoints.rotate(tmp_path, 2, "step-000002")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000004", "step-000005"]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adafactor", "rmsprop"])
def test_optimizer_and_random_states_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    from luthier.config import TrainConfig
    from luthier.training.optim import build_optimizer, build_schedule

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

    checkpoints.write(target, save, optimizer, schedule, None, {"step": 3})
    for _ in range(4):
        step(layer, optimizer, schedule)

    other, optimizer2, schedule2 = session()
    with torch.no_grad():  # poison, so that only a true restore can pass
        for parameter in other.parameters():
            parameter.fill_(9)
    state = checkpoints.read(
        target, lambda weights: other.load_state_dict(torch.load(weights / "w.pt")), optimizer2, schedule2, None
    )
    assert state["step"] == 3
    for _ in range(4):
        step(other, optimizer2, schedule2)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))


def test_no_pickle_is_in_a_checkpoint(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "state.json", "state.safetensors", "weights"}
    json.loads((folder / "state.json").read_text())
