"""The way from `luthier train` to the loss, read off a stack."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from tests.conftest import ROOT

SRC = ROOT / "src" / "luthier"


def test_from_the_command_to_the_loss_there_are_eight_calls_over_six_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.kernels import cross_entropy

    seen: list[list[tuple[str, str]]] = []
    own = cross_entropy.without_head

    def without_head(model: Any) -> Any:
        frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_stack()[:-1]]
        seen.append([(file.relative_to(SRC).as_posix(), name) for file, name in frames if file.is_relative_to(SRC)])
        return own(model)

    monkeypatch.setattr(cross_entropy, "without_head", without_head)
    run = tmp_path / "run"
    words = ["luthier", "train", "--data", "builtin:assistant", f"run={run}", "train.steps=1", "evaluate.before=false"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    steps = [calls for calls in seen if ("training/step.py", "gradient") in calls]
    assert steps, "the step's loss was never computed"
    assert all(len(calls) <= 8 for calls in steps), steps[0]
    assert all(len({file for file, _ in calls}) <= 6 for calls in steps), steps[0]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for file, name in steps[0]:
        assert f"`{name}`" in page and f"{file}" in page, f"docs/architecture.md does not show {file} {name}"
