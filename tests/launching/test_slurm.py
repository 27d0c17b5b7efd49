"""A real Slurm on this host: `make test-slurm`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from luthier.comparison.compare import compare
from luthier.comparison.on_slurm import OnSlurm
from luthier.comparison.runner import CompareConfig, CompareTask, Context
from luthier.comparison.workers import Event
from luthier.core.errors import InputError
from luthier.launching.base import LaunchOptions
from luthier.launching.launch import launch
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from tests.cli.test_cli import main
from tests.launching.conftest import same_run, same_table

WHY = (
    "only with LUTHIER_SLURM=1: make test-slurm"
    if not os.environ.get("LUTHIER_SLURM")
    else "slurmctld, slurmd and munged are not installed: apt-get install slurm-wlm munge"
    if not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged"))
    else "only root can start Slurm here"
    if os.geteuid()
    else ""
)
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)
SCRIPT = Path(__file__).with_name("slurm.sh")


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One controller and one node, for all tests here."""
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            subprocess.run([SCRIPT, "up", folder], check=True)
            yield
        finally:
            subprocess.run([SCRIPT, "down", folder], check=True)


def asked(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def state(number: str) -> dict[str, str]:
    """What Slurm knows of a job: JobState, Restarts, ..."""
    pairs = (word.split("=", 1) for word in asked("scontrol", "show", "job", number).split() if "=" in word)
    return dict(pairs)


def until(true: Callable[[], object], seconds: float, log: Path | None = None) -> None:
    end = time.monotonic() + seconds
    while not true():
        said = "\n".join(file.read_text() for file in log.parent.glob(log.name)) if log else ""
        assert time.monotonic() < end, said
        time.sleep(0.2)


def steps(run: Path) -> int:
    return sum("loss" in line for line in RunFolder(run).history())


def submitted(recipe: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[str, Path]:
    """(number of the job, pattern of its log)."""
    code, out, err = main(["launch", str(recipe), "--on", "slurm", *more], capsys)
    assert code == 0, err
    number = out.partition("submitted as job ")[2].split(":")[0]
    return number, Path("runs/recipe-lora-launch").absolute() / f"slurm-{number}*.out"


@pytest.fixture
def long(recipe: Path) -> Path:
    """The same recipe with steps enough to be warned in the middle of them."""
    config = RunConfig.load(recipe, ["train.steps=400", "train.save_every=100"])
    recipe.write_text(config.dump())
    return recipe


def test_a_warned_job_saves_is_requeued_and_ends_with_the_weights_of_an_undisturbed_run(
    long: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number, log = submitted(long, capsys, "--time", "00:30:00")
    run = Path("runs/recipe-lora")
    until(lambda: steps(run) > 5, 120, log)
    asked("scancel", "--batch", "--signal=USR1", number)  # what --signal=B:USR1@300 does before the time is up
    until(lambda: state(number).get("Restarts") == "1", 60, log)
    at = steps(run)
    assert 5 < at < 400 and not (run / "result.json").exists()
    assert (run / f"checkpoints/step-{at:06d}").is_dir(), "the last whole step was saved, not the last hundredth"
    until(lambda: state(number)["JobState"] == "COMPLETED", 240, log)
    said = "\n".join(file.read_text() for file in log.parent.glob(log.name))
    assert said.count("saved; back into the queue to resume") == 1, said
    train(RunConfig.load(long, ["run=undisturbed"]))
    same_run(run, Path("undisturbed"))


def test_slurm_itself_warns_a_job_before_its_time_is_up(long: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A job of three minutes is warned after two; Slurm may do it up to a minute earlier."""
    code, _, err = main(["launch", str(long), "--on", "slurm", "--time", "3", "--write", "to"], capsys)
    assert code == 0, err
    text = Path("to/recipe.yaml").read_text()
    Path("to/recipe.yaml").write_text(text.replace("steps: 400", "steps: 20000"))
    number = asked("sbatch", "--parsable", "to/job.sh")
    log = Path(f"slurm-{number}.out").absolute()
    run = Path("runs/recipe-lora")
    until(lambda: state(number).get("Restarts") == "1", 200, log)
    asked("scancel", number)
    assert "saved; back into the queue" in log.read_text() and "DUE TO TIME LIMIT" not in log.read_text()
    assert steps(run) and (run / f"checkpoints/step-{steps(run):06d}").is_dir()


def test_each_task_of_an_array_trains_a_seed_of_its_own(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = main(["launch", str(recipe), "train.steps=5", "--on", "slurm", "--write", "to"], capsys)
    assert code == 0, err
    number = asked("sbatch", "--parsable", "--array=0,3", "to/job.sh")
    runs = [Path("runs/recipe-lora/0"), Path("runs/recipe-lora/3")]
    until(lambda: all((run / "result.json").exists() for run in runs), 180, Path(f"slurm-{number}*.out").absolute())
    train(RunConfig.load(recipe, ["train.steps=5", "seed=3", "run=alone"]))
    same_run(runs[1], Path("alone"))


def test_more_devices_than_a_node_has_is_slurm_s_own_error(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = main(["launch", str(recipe), "--on", "slurm", "--devices", "1000"], capsys)
    assert code == 2 and err.startswith("error: sbatch: ") and len(err.splitlines()) == 1, err
    assert "Requested node configuration is not available" in err
    assert asked("squeue", "--noheader", "--states=PENDING") == "", "it does not wait in the queue"
    code, _, err = main(["launch", str(recipe), "--on", "slurm", "--partition", "none"], capsys)
    assert code == 2 and "Invalid partition name specified" in err and len(err.splitlines()) == 1


def test_a_job_whose_nodes_are_down_waits_for_them(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = asked("sinfo", "--noheader", "--format=%N")
    asked("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    try:
        number, _ = submitted(recipe, capsys)
        assert state(number)["JobState"] == "PENDING"
        asked("scancel", number)
    finally:
        asked("scontrol", "update", f"nodename={node}", "state=resume")


def test_two_processes_train_one_run(long: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "processes" not in type(RunConfig().train).model_fields:
        pytest.skip("this version trains with one process")
    number, log = submitted(long, capsys, "--devices", "2", "train.lr=1e-4")
    run = Path("runs/recipe-lora")
    until(lambda: steps(run) > 5, 240, log)
    asked("scancel", "--batch", "--signal=USR1", number)
    until(lambda: state(number).get("Restarts") == "1", 60, log)
    assert (run / f"checkpoints/step-{steps(run):06d}").is_dir()
    until(lambda: state(number)["JobState"] == "COMPLETED", 400, log)
    train(RunConfig.load(long, ["run=undisturbed", "train.lr=1e-4"]))
    losses = [
        [line["loss"] for line in RunFolder(each).history() if "loss" in line] for each in (run, Path("undisturbed"))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class KillsOne(OnSlurm):
    """Kills the process of the first run once, as the system does when memory is full."""

    def execute(self, context: Context, tasks: Sequence[CompareTask]) -> Iterator[Event]:
        self.killed: list[int] = []

        def kill() -> None:
            until(lambda: list(Path(tasks[0].config.run).glob("checkpoints/step-*")), 120)
            for process in psutil.process_iter(["cmdline"]):
                words = process.info["cmdline"] or []
                if "luthier.comparison.on_slurm" in words and words[-1] == "0":
                    process.send_signal(signal.SIGKILL)
                    self.killed.append(process.pid)

        if tasks[0].kind == "run":
            threading.Thread(target=kill, daemon=True).start()
        yield from super().execute(context, tasks)


def test_a_comparison_as_an_array_gives_the_table_of_one_machine(recipe: Path) -> None:
    options = CompareConfig("lora,prompt", workers=2)
    overrides = ["train.steps=60", "data.validation=0.3"]
    executor = KillsOne()
    found = compare(RunConfig.load(recipe, [*overrides, "run=array"]), options, executor=executor)
    assert executor.killed and all(row["status"] == "done" for row in found["rows"]), found["rows"]
    same_table(found, compare(RunConfig.load(recipe, [*overrides, "run=here"]), options))


def test_a_job_is_refused_without_a_node_for_it(recipe: Path) -> None:
    with pytest.raises(InputError, match="sbatch: "):
        launch(RunConfig.load(recipe), "slurm", LaunchOptions(nodes=99), recipe=recipe)
