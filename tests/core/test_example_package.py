"""The package that CONTRIBUTING.md shows, installed and used: one file adds one thing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core import entry_points
from tests.conftest import ROOT, luthier

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = {name: text for name, text in re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, flags=re.S)}
Run = Callable[..., Any]


def look_again() -> None:
    """The server of the forks had looked for packages before this one was there."""
    entry_points.installed.cache_clear()
    for name in [name for name in sys.modules if name.startswith("luthier.cli")]:
        del sys.modules[name]  # which asks for commands when it is imported


@pytest.fixture
def installed(tmp_path: Path) -> Run:
    """`installed("list", "methods")` runs the command line beside the package of the page."""
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    for name, text in FILES.items():
        if name.endswith(".py"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
    metadata = tmp_path / "luthier_example-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [line for group, names in groups for line in (f"[{group}]", *(f"{n} = {m}" for n, m in names.items()))]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return lambda *words: luthier(*words, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, before=look_again)


@pytest.mark.slow
def test_everything_is_listed_and_a_command_runs(installed: Run, tmp_path: Path) -> None:
    new = [sys.executable, "-m", "luthier", "list", "methods"]  # an interpreter that has imported nothing
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    done = subprocess.run(new, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    assert "tiny_lora" in done.stdout
    for kind, name in (("methods", "tiny_lora"), ("optimizers", "nadam"), ("trackers", "losses"), ("exports", "half")):
        assert name in installed("list", kind).stdout
    assert "hello" in installed("--help").stdout
    assert installed("hello", "--name", "luthier").stdout == "hello luthier\n"


@pytest.mark.slow
def test_a_run_uses_them_all(installed: Run, tmp_path: Path) -> None:
    (tmp_path / "sums.pairs").write_text("".join(f"{i} + {i} | {2 * i}\n" for i in range(40)), encoding="utf-8")
    done = installed(
        *("train", "--data", "sums.pairs", "--method", "tiny_lora", "run=run", "train.optimizer=nadam"),
        *("train.steps=2", "train.track=[losses]", "evaluate.generate=4"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["method"] == "tiny_lora" and result["tuned"]["length"]["value"] >= 0
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["plan"]["parts"]["optimizer"] > 0
    assert len((tmp_path / "run" / "losses.txt").read_text().splitlines()) == 2
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["format"]["name"] == "quiz" and data["train"]["kept"] > 20
    exported = installed("export", "run", "--to", "half")
    assert exported.returncode == 0, exported.stdout + exported.stderr
    assert (tmp_path / "run" / "exports" / "half" / "model.safetensors").is_file()


@pytest.mark.slow
def test_what_is_forgotten_is_named(installed: Run, tmp_path: Path) -> None:
    file = tmp_path / "luthier_example" / "nadam.py"
    file.write_text(file.read_text().partition("    def state_bytes")[0], encoding="utf-8")
    (tmp_path / "sums.pairs").write_text("1 + 1 | 2\n" * 20, encoding="utf-8")
    done = installed("train", "--data", "sums.pairs", "run=run", "train.steps=1", "train.optimizer=nadam")
    assert done.returncode != 0 and "NAdam" in done.stderr and "state_bytes" in done.stderr, done.stderr


def test_the_page_shows_each_kind() -> None:
    table = re.findall(r"^\| an? [\w ]+ \| `(luthier[\w.]+)` \|", PAGE, flags=re.M)
    assert sorted(table) == sorted(tomllib.loads(FILES["pyproject.toml"])["project"]["entry-points"])
