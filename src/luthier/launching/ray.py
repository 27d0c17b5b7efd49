"""Ray: a TorchTrainer of Ray Train v2; a worker that is lost is started again and resumes the run."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from luthier.core.errors import Busy, InputError, first_line, install, require_package
from luthier.core.events import SILENT, Progress
from luthier.core.shell import shell_line
from luthier.core.signals import EXIT_CODES
from luthier.launching.base import Job, check_address, render

TAKES = ("address", "workers", "retries")
PORTS = {"": 6379, "ray": 10001}
"""Ray's own ports of a cluster and of its client server."""


def check(job: Job, *, written: bool) -> None:
    """InputError where nothing answers at the address, MissingExtra without Ray: both before anything is read."""
    if not written:
        check_ray(job.options.address)


def check_ray(address: str) -> None:
    """MissingExtra where Ray is not installed, InputError where nothing answers at `address`."""
    require_package("ray", "ray is not installed: it is an extra", install("ray"))
    if address in ("", "auto", "local"):
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)
    except ValueError:
        host, port = "", 0
    if parts.scheme not in PORTS or not host or not port or parts.path:
        raise InputError(f"--address {address!r} is no address of Ray", fix="HOST:PORT, ray://HOST:PORT or auto")
    check_address("--address", host, port)


def connect(address: str, progress: Progress) -> list[dict[str, float]]:
    """Connect to the cluster at `address`, or start one on this machine; returns the resources of each node.

    A process that is connected stays so. InputError where Ray refuses.
    """
    import ray

    if ray.is_initialized():
        return _nodes()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the default of later versions; else it warns
    own = not address and not os.environ.get("RAY_ADDRESS")
    progress.stage("starting Ray on this machine" if own else f"connecting to Ray at {address or '$RAY_ADDRESS'}")
    handlers = {number: signal.getsignal(number) for number in EXIT_CODES}
    try:
        own_cluster: dict[str, Any] = {"include_dashboard": False} if own else {}
        ray.init(address=address or None, log_to_driver=False, logging_level="error", **own_cluster)
    except Exception as error:  # of many kinds
        raise InputError(
            f"Ray: {first_line(error)}", fix="check --address, and the same version of Ray there"
        ) from None
    if threading.current_thread() is threading.main_thread():  # Ray has put its own in their place
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return _nodes()


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def shares(nodes: Sequence[Mapping[str, float]], workers: int, device: str) -> dict[str, int]:
    """Resources of each of so many workers: one GPU where the cluster has them, and the most CPUs that all can have.

    InputError where the cluster is too small.
    """
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    on_gpu = device == "cuda" or (device == "auto" and any(gpus))
    if on_gpu and sum(gpus) < workers:
        raise InputError(f"{workers} workers need a GPU each, and the cluster has {sum(gpus)}", fix="fewer --workers")
    for count in range(max(cpus, default=0), 0, -1):
        places = (min(cpu // count, gpu if on_gpu else cpu) for cpu, gpu in zip(cpus, gpus, strict=True))
        if sum(places) >= workers:
            return {"CPU": count} | ({"GPU": 1} if on_gpu else {})
    raise InputError(f"{workers} workers need a CPU each, and the cluster has {sum(cpus)}", fix="fewer --workers")


def write(job: Job, folder: Path, progress: Progress) -> str:
    """Write job.sh, which starts the run from any machine of a cluster; returns the command for it."""
    render("ray_job.sh.jinja", folder / "job.sh", job=job, recipe=folder / "recipe.yaml")
    return shell_line("bash", folder / "job.sh")


def start(job: Job, folder: Path, progress: Progress) -> dict[str, Any]:
    """Train, and return the result of the run; a lost worker is started again `retries` times.

    InputError for what the run finds wrong with the recipe or the data: that is not tried again.
    """
    nodes = connect(job.options.address, progress)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig, TorchTrainer

    class NoGroup(Backend):  # type: ignore[misc]
        """The run connects its processes itself; Ray would have opened the group before."""

        share_cuda_visible_devices = True

    class NoGroupConfig(TorchConfig):  # type: ignore[misc]
        backend_cls = NoGroup

    each = shares(nodes, job.options.workers, job.config.model.device)
    count = job.options.workers
    progress.stage(f"training on {count} worker{'s' * (count != 1)}, each with {_words(each)}")
    progress.note(f"follow it: {shell_line('luthier', 'watch', job.run)}")
    log = folder / "ray.log"
    log.write_text("")
    given = {"recipe": job.config.model_dump(mode="json"), "run": str(job.run), "folder": str(Path.cwd())}
    given |= {"log": str(log)}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=given,
        torch_config=NoGroupConfig(),
        scaling_config=ScalingConfig(num_workers=job.options.workers, use_gpu="GPU" in each, resources_per_worker=each),
        run_config=RunConfig(
            storage_path=str(folder), name="ray", failure_config=FailureConfig(max_failures=job.options.retries)
        ),
    )
    try:
        with _shown(log, progress):
            outcome = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise InputError(f"the run failed on Ray: {last_line(error)}", fix="rerun the same command to resume") from None
    finally:
        ray.shutdown()
    if "error" in outcome:
        raise InputError(outcome["error"])
    return dict(outcome["result"])


def last_line(error: Exception) -> str:
    """The last line of an error of Ray: what was raised in the worker, below a traceback."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def _words(resources: Mapping[str, int]) -> str:
    return " and ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in resources.items())


def train_worker(given: dict[str, Any]) -> dict[str, Any]:
    """Train in a worker of Ray: {"result"} of the run, or {"error"} where it must not be tried again."""
    import ray
    from ray.train.collective import broadcast_from_rank_zero

    from luthier.pipeline.train import train
    from luthier.recipe.config import RunConfig

    context = ray.train.get_context()
    if context.get_world_size() > 1:
        address, port = broadcast_from_rank_zero((ray.util.get_node_ip_address(), free_port()))
        place = {"MASTER_ADDR": address, "MASTER_PORT": port, "WORLD_SIZE": context.get_world_size()}
        place |= {"RANK": context.get_world_rank(), "LOCAL_RANK": context.get_local_rank()}
        place |= {"LOCAL_WORLD_SIZE": context.get_local_world_size()}
        os.environ.update({name: str(value) for name, value in place.items()})
    log = RunLog(Path(given["log"])) if context.get_world_rank() == 0 else SILENT
    log.stage(f"a worker starts on {ray.util.get_node_ip_address()}")
    os.chdir(given["folder"])  # relative paths of the recipe
    config = RunConfig.model_validate({**given["recipe"], "run": given["run"]})
    try:
        return {"result": train(config, progress=log)}
    except Busy:
        raise  # the worker before this one may still be ending
    except InputError as error:
        return {"error": str(error)}


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    import socket

    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


class RunLog(Progress):
    """Appends what a run reports to a file, a line each: Ray's own log has it between many lines of its own."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def stage(self, text: str) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def warn(self, text: str) -> None:
        self.stage(f"! {text}")

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        self.stage(f"step {step}: held-out loss {loss:.4f}")

    def saved(self, step: int) -> None:
        self.stage(f"step {step}: saved")


@contextmanager
def _shown(log: Path, progress: Progress) -> Iterator[None]:
    """Inside, lines that are added to the file `log` are reported."""
    ended = threading.Event()

    def follow() -> None:
        with log.open(encoding="utf-8") as file:
            while True:
                last = ended.wait(1.0)
                for line in file:
                    progress.said(line.rstrip())
                if last:
                    return

    thread = threading.Thread(target=follow, daemon=True, name="luthier-ray-log")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
