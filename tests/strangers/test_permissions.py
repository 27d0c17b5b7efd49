"""Another user's eyes on a run, and disks that take no more: which file it is, why, and what opens it."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from luthier.core.errors import InputError, NoSpace
from luthier.core.resources import explained
from luthier.models.load import locate
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from luthier.serving.engine.sources import source_of
from luthier.training import checkpoint as checkpoints

Close = Callable[[Path], None]


@pytest.fixture
def close(monkeypatch: pytest.MonkeyPatch) -> Close:
    """Make a file unreadable. Root may read every file, so for root opening it fails as it would for others."""

    def shut(path: Path) -> None:
        path.chmod(0)
        if os.geteuid() != 0:
            return
        own = io.open

        def refuse(file: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(file, str | Path) and Path(file) == path:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
            return own(file, *arguments, **options)

        monkeypatch.setattr(io, "open", refuse)

    return shut


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def save(target: Path, size: int = 4) -> Path:
    with checkpoints.staged(target) as folder:
        (folder / "weights").mkdir()
        save_file({"w": torch.zeros(size)}, folder / "weights" / "w.safetensors")
        (folder / "state.json").write_text("{}")
    return target


@pytest.fixture
def finished(tmp_path: Path) -> RunFolder:
    """What `weights` looks at of a finished run."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.recipe.write_text("model: builtin\n")
    folder.result.write_text("{}")
    with checkpoints.staged(folder.path / "adapter") as staging:
        save_file({"w": torch.zeros(4)}, staging / "adapter_model.safetensors")
        (staging / "adapter_config.json").write_text('{"base_model_name_or_path": "builtin"}')
    return folder


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_every_file_of_a_staged_folder_has_the_mode_that_the_umask_leaves(
    mask: int, umask: Callable[[int], int], tmp_path: Path
) -> None:
    umask(mask)
    folder = save(tmp_path / "step-000001")
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o666 & ~mask} and "w.safetensors" in modes, modes


def test_weights_that_are_closed_are_not_called_damaged(finished: RunFolder, close: Close) -> None:
    close(finished.path / "adapter/adapter_model.safetensors")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors may not be read by this user") as refused:
        finished.weights()
    assert refused.value.fix == f"its owner gives access: chmod -R a+rX {finished.path / 'adapter'}"
    assert "mode 0" in refused.value.message and "damaged" not in str(refused.value)


def test_a_checkpoint_that_is_closed_is_not_put_aside(tmp_path: Path, close: Close) -> None:
    kept = save(tmp_path / "step-000001")
    close(kept / "manifest.json")
    with pytest.raises(InputError, match=r"manifest\.json may not be read"):
        checkpoints.newest(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_hashes_of_the_base_that_are_closed_are_not_rebuilt(
    tmp_path: Path, close: Close, model_folder: Callable[..., Path]
) -> None:
    folder = RunFolder(tmp_path)
    folder.environment.write_text(json.dumps({"base": {"config.json": "of another base"}}))
    before = folder.environment.stat().st_ino
    close(folder.environment)
    base = model_folder("llama")
    with pytest.raises(InputError, match="may not be read by this user"):
        folder.refuse_another_base(RunConfig.load(None, [f"model={base}"]).model, str(base))
    assert folder.environment.stat().st_ino == before


def test_a_closed_adapter_and_a_closed_base_are_called_that(
    finished: RunFolder, tmp_path: Path, close: Close, model_folder: Callable[..., Path]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(model_folder("llama"), base)
    close(base / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors may not be read"):
        locate(RunConfig.load(None, [f"model={base}"]).model)
    adapter = finished.path / "adapter"
    close(adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors may not be read"):
        source_of(str(adapter))


def test_a_limit_of_the_file_size_is_no_full_disk(tmp_path: Path) -> None:
    """As `ulimit -f` sets it. safetensors says it only in words."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(NoSpace, match=r"1 MiB to a file \(ulimit -f\)") as refused:
            save(tmp_path / "step-000001", size=2**19)
        assert "ulimit -f unlimited" in refused.value.fix and not list(tmp_path.iterdir())
        with pytest.raises(OSError) as plain, (tmp_path / "rows").open("wb", buffering=0) as file:
            for _ in range(3):
                file.write(bytes(2**19))
        assert "ulimit -f" in str(explained(plain.value))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


Usage = namedtuple("Usage", "total used free")


def test_a_full_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "small"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2**40, 0, 0 if Path(place) == temporary else 2**39))
    told = explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), tmp_path / "run")  # of write(): names no file
    assert isinstance(told, NoSpace) and str(temporary) in told.message and "TMPDIR=" in told.fix
    told = explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "run/result.json")))
    assert isinstance(told, NoSpace) and str(temporary) not in str(told) and "TMPDIR" not in told.fix


def test_no_temporary_folder_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    with pytest.raises(FileNotFoundError) as none:
        tempfile.mkdtemp()
    told = explained(none.value)
    assert isinstance(told, NoSpace) and "missing" in told.message and "TMPDIR=" in told.fix
