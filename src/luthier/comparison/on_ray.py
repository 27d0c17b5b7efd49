"""The tasks of a comparison as tasks of Ray: one whose worker is lost is tried again and resumes."""

from collections.abc import Iterator, Sequence
from typing import Any

from luthier.comparison.runner import CompareTask, Context
from luthier.comparison.tasks import do_alone, planned_bytes, task_record
from luthier.comparison.workers import Event
from luthier.launching.ray import check_ray, connect, last_line, shares

POLL_SECONDS = 1.0
STOP_SECONDS = 60.0
"""Longest wait for tasks that are to save and end."""


class OnRay:
    """The cluster at an address, or one that is started on this machine."""

    local = False

    def __init__(self, address: str = "", retries: int = 3) -> None:
        """`retries` is how often a task is tried again after its worker was lost."""
        self.address, self.retries = address, retries

    def check(self) -> None:
        """MissingExtra where Ray is not installed, InputError where nothing answers at the address."""
        check_ray(self.address)

    def execute(self, context: Context, tasks: Sequence[CompareTask]) -> Iterator[Event]:
        """Start each task with the memory that its plan names; stopped or left, the tasks save and end."""
        import ray

        nodes = connect(self.address, context.progress)
        gpus = int("GPU" in shares(nodes, 1, context.config.model.device))
        remote = ray.remote(do_alone)
        waiting, running, lost = list(range(len(tasks)))[::-1], dict[Any, int](), [0] * len(tasks)
        try:
            while waiting or running:
                while waiting and len(running) < context.workers:
                    number = waiting.pop()
                    memory = None if gpus else planned_bytes(context, tasks[number])
                    wanted = remote.options(num_cpus=1, num_gpus=gpus, memory=memory, max_retries=self.retries)
                    running[wanted.remote(task_record(tasks[number]))] = number
                ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
                for reference in ready:
                    number = running.pop(reference)
                    try:
                        kind, value = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        kind, value = "failed", f"Ray: {last_line(error)}"
                    if kind == "stopped" and lost[number] < self.retries:  # its node was asked to end, not we
                        lost[number] += 1
                        waiting.append(number)
                    else:
                        yield Event(number, kind, value)
        finally:
            for reference in running:
                ray.cancel(reference)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=STOP_SECONDS)
