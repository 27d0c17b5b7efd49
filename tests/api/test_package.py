"""The package as others install and check it: its types, its names, its wheel."""

from __future__ import annotations

import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

import luthier
from tests.conftest import ROOT

USE = """
import luthier

rows = [{"instruction": "a", "output": "b"}]


def use() -> str:
    run = luthier.train(model="builtin", data=rows, method="lora", train=dict(epochs=1), run="runs/mine")
    value: float = run.scores["loss"].value
    base = run.scores["loss"].base
    if base is not None:
        value -= base.low
    told: list[str] = run.generate_all(["a", [{"role": "user", "content": "x"}]], temperature=0.5)
    for rows_of_step in luthier.prepare(data=rows).batches():
        print(len(rows_of_step))
    fits: bool | None = luthier.plan(model="builtin", data=rows).fits
    return run.generate("hi", max_new_tokens=5) + told[0] + str(value) + str(fits)
"""


def test_every_name_is_there_and_explained() -> None:
    assert dir(luthier) == sorted(luthier.__all__)
    for name in luthier.__all__:
        assert name == "__version__" or getattr(luthier, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        luthier.trian  # noqa: B018


@pytest.mark.slow
def test_the_types_hold_for_those_who_use_it(tmp_path: Path) -> None:
    """Other libraries are left out: reading torch's types takes mypy ten times as long, and the user's line has none."""
    others = ["torch", "transformers", "peft", "numpy", "pandas", "datasets", "pyarrow", "IPython", "rich", "typer"]
    others += ["fsspec", "psutil", "jinja2", "fastapi", "uvicorn", "starlette", "huggingface_hub", "tokenizers"]
    skipped = f"[mypy-{','.join(f'{name}.*' for name in others)}]\nfollow_imports = skip\n"
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = True\nfollow_imports = silent\n{skipped}")
    (tmp_path / "use.py").write_text(USE)
    (tmp_path / "wrong.py").write_text(USE.replace("max_new_tokens", "max_new_token"))
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", f"--cache-dir={tmp_path}/cache", "use.py", "wrong.py"],
        env={"MYPYPATH": str(ROOT / "src"), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    said = checked.stdout + checked.stderr
    assert 'error: Unexpected keyword argument "max_new_token"' in said and "use.py:" not in said, said
    assert "Found 1 error in 1 file (checked 2 source files)" in said, said


@pytest.mark.slow
def test_the_wheel_carries_the_types_and_the_data(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "luthier/py.typed" in names and "luthier/api/calls.py" in names and "luthier/builtin/probe.jsonl" in names


def test_libraries_are_quiet_within_and_as_they_were_after() -> None:
    from transformers.utils import logging

    from luthier.core.quiet import quiet_libraries

    level, hook = logging.get_verbosity(), logging._tqdm_hook
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet_libraries():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with quiet_libraries():
        thread.start()
        entered.wait()
    assert logging.get_verbosity() == logging.ERROR, "the other thread is still within"
    assert list(logging.tqdm([1, 2], desc="Loading weights")) == [1, 2] and logging._tqdm_hook is not None
    leave.set()
    thread.join()
    assert logging.get_verbosity() == level and logging._tqdm_hook is hook
