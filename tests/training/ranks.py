"""A run on several ranks, each a process that is forked from the test: nothing has to be imported again."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from luthier.core.errors import LuthierError
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def on_ranks(
    world: int,
    work: Callable[[int], Any],
    out: Path,
    environment: Mapping[str, str] | None = None,
    alive: Callable[[list[Any]], None] = lambda processes: None,
    timeout: float = 240.0,
    frozen: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """{"value"} or {"error", "code"} of each rank, or {} of one that left nothing.

    `alive` may disturb them; those that are `frozen` by it are not waited for.
    """
    port = free_port()
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")

    def one(rank: int) -> None:
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        os.environ |= {key: str(value) for key, value in place.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **(environment or {})}
        torch.set_num_threads(1)
        faulthandler.dump_traceback_later(0.8 * timeout)  # where it hangs
        try:
            left: dict[str, Any] = {"value": work(rank)}
        except LuthierError as error:
            left = {"error": f"{type(error).__name__}: {error}", "code": error.exit_code}
        except BaseException:
            left = {"error": traceback.format_exc(), "code": 1}
        (out / f"{rank}.json").write_text(json.dumps(left, default=str))
        os._exit(left.get("code", 0))

    processes = [context.Process(target=one, args=(rank,), daemon=True) for rank in range(world)]
    for process in processes:
        process.start()
    alive(processes)
    for rank, process in enumerate(processes):
        process.join(timeout if rank not in frozen else 0)
    hung = [rank for rank, process in enumerate(processes) if process.is_alive() and rank not in frozen]
    for process in processes:
        process.kill()
    assert not hung, f"ranks {hung} hang"
    files = [out / f"{rank}.json" for rank in range(world)]
    return [json.loads(file.read_text()) if file.is_file() else {} for file in files]


def trained_on(world: int, run: Path, overrides: list[str], **more: Any) -> list[dict[str, Any]]:
    """The result of `luthier train` on so many ranks."""
    config = RunConfig.load(None, [*overrides, f"run={run}"])
    return on_ranks(world, lambda rank: train(config), run.parent / f"{run.name}.out", **more)
