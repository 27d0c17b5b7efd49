"""A small model with dropout, rows, and runs that are cheap."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.events import SILENT, Progress
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from tests.conftest import alpaca_rows, build_tokenizer, model_config, write_jsonl

COMMON = [
    "train.lr=2e-2",
    "train.batch_size=4",
    "train.micro_batch=2",
    "train.steps=8",
    "train.save_every=1",
    "train.keep=99",
    "train.evaluate_every=4",
    "evaluate.generate=0",
    "evaluate.before=false",
    "data.workers=1",
    "data.cache=false",
    "train.packing=false",
]
"""20 rows train, so an epoch has 5 steps; each has two passes."""


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, a Llama with attention dropout, and `rows.jsonl`."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("shelf")
    config = model_config("llama")
    config.attention_dropout = 0.1
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    write_jsonl(folder / "rows.jsonl", alpaca_rows(22))
    return folder


class Heard(Progress):
    """Keeps what a run says, and calls `at_step` behind each step."""

    def __init__(self, at_step: Callable[[int], object] = lambda step: None) -> None:
        self.said: list[str] = []
        self.at_step = at_step

    def warn(self, text: str) -> None:
        self.said.append(text)

    note = warn

    def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
        self.at_step(record["step"])


Start = Callable[..., dict[str, Any]]


@pytest.fixture
def start(shelf: Path) -> Start:
    """Train in a folder: start(run, *overrides, progress=...)."""

    def go(run: Path, *overrides: str, progress: Progress = SILENT) -> dict[str, Any]:
        own = [f"model={shelf / 'model'}", f"data={shelf / 'rows.jsonl'}", f"run={run}"]
        return train(RunConfig.load(None, [*COMMON, *own, *overrides]), progress=progress)

    return go


LORA = ["method.rank=2", "method.dropout=0.1", "train.packing=true", "train.micro_tokens=128"]


@pytest.fixture(scope="session")
def whole(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LORA that nothing stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    own = [f"model={shelf / 'model'}", f"data={shelf / 'rows.jsonl'}", f"run={run}"]
    train(RunConfig.load(None, [*COMMON, *own, *LORA]))
    return run


def forked(work: Callable[[], object]) -> int:
    """Do `work` in a process of its own, which has all libraries already; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def status(pid: int) -> int:
    """Wait for a process: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
