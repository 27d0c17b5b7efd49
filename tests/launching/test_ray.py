"""Ray on this machine, in a cluster of its own for each test: `make test-ray`."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from luthier.comparison.compare import compare
from luthier.comparison.on_ray import OnRay
from luthier.comparison.runner import CompareConfig, CompareTask, Context
from luthier.comparison.workers import Event
from luthier.core.errors import InputError
from luthier.launching.base import LaunchOptions
from luthier.launching.launch import launch
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from tests.launching.conftest import same_run, same_table

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: make test-ray")
RUN = Path("runs/recipe-lora")


@pytest.fixture(autouse=True)
def own_cluster() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


def kill_when(name: str, ready: Callable[[], object]) -> list[int]:
    """Kill, from a thread, the worker of Ray whose title has `name`, once it is `ready`; the list gets its pid."""
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 240
        while not ready() and time.monotonic() < end:
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            if any(name in word for word in process.cmdline()):
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)
                return

    threading.Thread(target=kill, daemon=True).start()
    return killed


def test_a_killed_worker_is_started_again_and_the_run_ends_as_if_undisturbed(recipe: Path) -> None:
    config = RunConfig.load(recipe, ["train.steps=200", "train.save_every=10"])
    killed = kill_when("RayTrainWorker", lambda: list(RUN.glob("checkpoints/step-*")))
    result = launch(config, "ray", LaunchOptions(), recipe=recipe)
    assert killed, "the test has killed nothing"
    assert result is not None and result["steps"] == 200 and (RUN / "result.json").is_file()
    train(config.model_copy(update={"run": "undisturbed"}))
    same_run(RUN, Path("undisturbed"))


def test_a_mistake_in_the_data_is_its_own_message_and_not_tried_again(recipe: Path) -> None:
    Path("rows.jsonl").write_text("no row\n")
    with pytest.raises(InputError, match=r"rows\.jsonl") as caught:
        launch(RunConfig.load(recipe), "ray", LaunchOptions(), recipe=recipe)
    assert "Ray" not in str(caught.value) and not RUN.exists()


def test_a_run_that_loses_its_worker_too_often_fails_with_what_ray_says(recipe: Path) -> None:
    config = RunConfig.load(recipe, ["train.steps=2000", "train.save_every=10"])
    kill_when("RayTrainWorker", lambda: list(RUN.glob("checkpoints/step-*")))
    with pytest.raises(InputError, match="the run failed on Ray: "):
        launch(config, "ray", LaunchOptions(retries=0), recipe=recipe)


def test_more_workers_than_the_cluster_has_is_an_error(recipe: Path) -> None:
    with pytest.raises(InputError, match="fewer --workers"):
        launch(RunConfig.load(recipe), "ray", LaunchOptions(workers=9999), recipe=recipe)


def test_two_workers_train_one_run(recipe: Path) -> None:
    if "processes" not in type(RunConfig().train).model_fields:
        pytest.skip("this version trains with one process")
    config = RunConfig.load(recipe, ["train.lr=1e-4"])
    killed = kill_when("RayTrainWorker", lambda: list(RUN.glob("checkpoints/step-*")))
    launch(config, "ray", LaunchOptions(workers=2), recipe=recipe)
    assert killed
    train(config.model_copy(update={"run": "undisturbed"}))
    losses = [
        [line["loss"] for line in RunFolder(each).history() if "loss" in line] for each in (RUN, Path("undisturbed"))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class KillsOne(OnRay):
    """Kills the worker of a run once, when the run has a checkpoint."""

    killed: list[int]

    def execute(self, context: Context, tasks: Sequence[CompareTask]) -> Iterator[Event]:
        if tasks[0].kind == "run":
            place = Path(tasks[0].config.run)
            self.killed = kill_when("do_alone", lambda: list(place.glob("checkpoints/step-*")))
        yield from super().execute(context, tasks)


def test_a_comparison_on_ray_gives_the_table_of_one_machine(recipe: Path) -> None:
    overrides = ["data.validation=0.3"]
    options, executor = CompareConfig("lora,prompt", workers=2), KillsOne()
    # Here first: the forks of a comparison on this machine must not have Ray's threads.
    here = compare(RunConfig.load(recipe, [*overrides, "run=here"]), options)
    found = compare(RunConfig.load(recipe, [*overrides, "run=ray"]), options, executor=executor)
    assert executor.killed and all(row["status"] == "done" for row in found["rows"]), found["rows"]
    same_table(found, here)


def test_a_stopped_comparison_saves_its_runs_and_goes_on(recipe: Path) -> None:
    """Ctrl-C at the command line: the tasks end, and the same command finishes the comparison."""
    words = [sys.executable, "-m", "luthier", "compare", str(recipe), "train.steps=400", "data.validation=0.3"]
    words += ["run=compared", "--methods", "lora", "--on", "ray"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    place = Path("compared/arms/lora-s0")
    end = time.monotonic() + 240
    while len(RunFolder(place).history()) < 5:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 75 and "Rerun the same command to resume" in out, out
    assert not (place / "result.json").exists()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and (place / "result.json").exists(), done.stderr
