"""Several processes of one run on this machine, started by torchrun's own engine."""

import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.core.errors import InputError, Stopped
from luthier.core.events import Progress
from luthier.core.ranks import AGAIN, BEGUN, RankLost, started
from luthier.core.signals import EXIT_CODES
from luthier.recipe.config import RunConfig
from luthier.recipe.identity import run_path
from luthier.recipe.parse import RecipeSource

SAVING = 300
"""Seconds that the other processes have to save and end, once one of them has failed or a signal came."""


def processes(config: RunConfig) -> int:
    """How many processes to start for a run on this machine: as the recipe says, else one for each GPU, else one.

    A process that a launcher started beside others starts none.
    """
    if started():
        return 1
    if config.train.processes is not None:
        return config.train.processes
    from luthier.models.load import device

    if device(config.model) != "cuda":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def run_on(count: int, arguments: Sequence[str], silent: str = "") -> int:
    """Run `luthier` with these arguments in `count` processes and return its exit code.

    Where a folder is given as `silent`, what they print goes there, but for errors.
    Raises RankLost where a process was killed; what another says of its error is on the terminal already.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it prints a page for an exit code of 2
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "")
    if loopback:  # nothing leaves the machine, and its name need not resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    os.environ[BEGUN] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=secrets.token_hex(8),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        shutdown_timeout=SAVING,
        logs_specs=DefaultLogsSpecs(log_dir=silent, redirects=Std.OUT) if silent else DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "luthier", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        raise RankLost(f"rank {rank} was killed by {name}", fix=AGAIN) from None
    except SignalException as stop:
        return EXIT_CODES.get(stop.sigval, 128 + stop.sigval)
    finally:
        os.environ.pop(BEGUN, None)
    return 0


def train_on(count: int, config: RunConfig, recipe: RecipeSource | None, progress: Progress) -> Path:
    """Train in `count` processes, for a caller in Python; returns the run's folder.

    The processes report on the terminal what is wrong; an error here has their exit code.
    """
    folder = run_path(config, recipe)
    progress.stage(f"training in {count} processes; luthier watch {folder} follows them")
    with TemporaryDirectory(prefix="luthier-") as place:
        file = Path(place, "recipe.yaml")
        file.write_text(config.model_copy(update={"run": str(folder.absolute())}).dump(), encoding="utf-8")
        code = run_on(count, ["train", str(file)], silent=place)
    if code == 0:
        return folder
    if code in EXIT_CODES.values():
        raise Stopped("stopped; everything that was trained is saved", code)
    raise InputError(f"training in {count} processes ended with exit code {code}; what is wrong stands above")
