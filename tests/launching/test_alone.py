"""Tasks of a comparison that are done alone give the table of one machine: what Ray and Slurm rely on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import luthier as package
from luthier.comparison.compare import compare
from luthier.comparison.on_slurm import OnSlurm
from luthier.comparison.runner import CompareConfig, CompareTask, Context
from luthier.comparison.tasks import planned_bytes, task_record
from luthier.comparison.workers import Event
from luthier.core.errors import InputError
from luthier.recipe.config import RunConfig
from tests.cli.test_cli import main
from tests.conftest import luthier
from tests.launching.conftest import Program, same_table
from tests.processes import python

OPTIONS = CompareConfig("lora,pissa", seeds=1, workers=1)
ALONE = (
    "import json, sys; from luthier.comparison.tasks import do_alone; print(json.dumps(do_alone(json.load(sys.stdin))))"
)


class Alone:
    """Every task in a process of its own, which gets nothing but the record of it."""

    local = False

    def __init__(self) -> None:
        self.planned: dict[str, int | None] = {}

    def check(self) -> None:
        pass

    def execute(self, context: Context, tasks: Sequence[CompareTask]) -> Iterator[Event]:
        for number, task in enumerate(tasks):
            self.planned[task.name] = planned_bytes(context, task)
            given = json.dumps(task_record(task))
            done = python(ALONE, text=given)
            assert done.returncode == 0, done.stderr
            yield Event(number, *json.loads(done.stdout.splitlines()[-1]))


def config(recipe: Path, run: str, *more: str) -> RunConfig:
    return RunConfig.load(recipe, ["train.steps=4", "data.validation=0.3", f"run={run}", *more])


def test_the_table_is_that_of_one_machine(recipe: Path) -> None:
    executor = Alone()
    elsewhere = compare(config(recipe, "elsewhere"), OPTIONS, executor=executor)
    here = compare(config(recipe, "here"), OPTIONS)
    same_table(elsewhere, here)
    assert executor.planned.keys() == {"base", "lora-s0", "pissa-s0"}
    assert all(planned and 1e8 < planned < 1e10 for planned in executor.planned.values())
    assert all(row["status"] == "done" and row["latency"]["row"]["ratio"] > 0 for row in elsewhere["rows"])


@pytest.mark.skipif(not os.environ.get("LUTHIER_SLURM"), reason="make test-slurm: forty seconds")
def test_a_search_finds_the_same_settings_elsewhere(recipe: Path) -> None:
    options = CompareConfig("lora", tune=True, workers=1)
    elsewhere = compare(config(recipe, "elsewhere", "train.steps=88"), options, executor=Alone())
    here = compare(config(recipe, "here", "train.steps=88"), options)
    assert elsewhere["tuned"] == here["tuned"]
    same_table(elsewhere, here)


def test_a_task_that_fails_is_a_row_with_its_reason(recipe: Path) -> None:
    class Damaged(Alone):
        def execute(self, context: Context, tasks: Sequence[CompareTask]) -> Iterator[Event]:
            if tasks[0].kind == "run":
                Path("rows.jsonl").write_text("no row\n")
            return super().execute(context, tasks)

    found = compare(config(recipe, "compared"), CompareConfig("lora"), executor=Damaged())
    assert [row["status"] for row in found["rows"]] == ["failed"] and "rows.jsonl" in found["rows"][0]["reason"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "slurm", "--budget", "1h"], "--budget measures the speed of this machine"),
        (["--on", "slurm", "--address", "a:1"], "--address belongs to --on ray"),
        (["--partition", "gpu"], "--partition belongs to --on slurm"),
        (["--on", "ray", "--time", "10"], "--time belongs to --on slurm"),
        (["--on", "slurm", "--time", "soon"], "--time 'soon' is no time"),
        (["--on", "moon"], "'--on'"),
    ],
)
def test_bad_input(words: list[str], message: str, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = main(["compare", "recipe.yaml", "--methods", "lora", *words], capsys)
    assert code == 2 and message in err and not Path("runs").exists(), err


SBATCH = """
if [ "$1" != --parsable ]; then exit; fi
list=${2#--array=}
for task in $(tr , ' ' <<<"${list%%%*}"); do SLURM_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task bash "${@: -1}" >"$LEFT/log" 2>&1; done
echo "$@" >>"$LEFT/submitted"
echo 7
"""


def test_tasks_of_an_array_leave_their_outcomes(
    recipe: Path, program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With programs in place of Slurm's, which do each task at once, in the shell script that Slurm gets."""
    left = program("sbatch", SBATCH)
    program("squeue", "exit 0")
    found = compare(config(recipe, "compared"), CompareConfig("lora,prompt"), executor=OnSlurm())
    assert [row["status"] for row in found["rows"]] == ["done", "done"], (left / "log").read_text()
    assert found["workers"] == 2 and found["threads"] == 1
    asked = (left / "submitted").read_text()
    assert "--mem=" in asked and "--array=0" in asked, "what the plans say"


def test_python_compares_where_the_command_does(recipe: Path, program: Program) -> None:
    left = program("sbatch", SBATCH)
    program("squeue", "exit 0")
    settings: dict[str, Any] = {"recipe": recipe, "methods": ["lora"], "train": {"steps": 4}, "run": "compared"}
    settings |= {"data": {"validation": 0.3}, "progress": False}
    found = package.compare(**settings, on="slurm", partition="gpu", time="00:10:00")
    assert list(found.to_pandas()["status"]) == ["done"]
    script = Path("compared/jobs/array.sh").read_text()
    assert "#SBATCH --partition=gpu\n" in script and "#SBATCH --time=00:10:00\n" in script
    assert (left / "submitted").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on": "slurm", "budget": "1h"}, "--budget measures the speed of this machine"),
        ({"on": "slurm", "address": "a:1"}, "--address belongs to --on ray"),
        ({"partition": "gpu"}, "--partition belongs to --on slurm"),
        ({"on": "ray", "address": "a b"}, "ray is not installed|is no address of Ray"),
        ({"on": "slurn"}, "unknown engine 'slurn'"),
    ],
)
def test_python_refuses_what_the_command_refuses(given: dict[str, str], message: str, recipe: Path) -> None:
    with pytest.raises(InputError, match=message):
        package.compare(recipe=recipe, methods="lora", progress=False, **given)
    assert not Path("runs").exists()


def test_a_killed_task_of_an_array_goes_back_into_the_queue_and_one_that_fails_does_not(
    recipe: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = program("sbatch", "echo 7")
    program("squeue", "exit 0")
    program("scontrol", 'echo "$@" >"$LEFT/requeued"')
    monkeypatch.setattr("luthier.comparison.on_slurm.POLL_SECONDS", 0.01)
    with pytest.raises(InputError, match="its job ended without a result"):
        compare(config(recipe, "compared"), CompareConfig("lora"), executor=OnSlurm())
    script = Path("compared/jobs/array.sh")
    program_name = Path(sys.executable).name
    text = script.read_text().replace(sys.executable, program_name)
    script.write_text(text)
    for code, restarts, back in ((137, "0", True), (137, "3", False), (2, "0", False)):
        (left / "requeued").unlink(missing_ok=True)
        program(program_name, f"exit {code}")
        environment = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_RESTART_COUNT": restarts}
        done = subprocess.run(["bash", script], env={**os.environ, **environment}, check=False)
        assert (left / "requeued").exists() == back, (code, restarts)
        assert done.returncode == (0 if back else code)


def test_the_command_line_of_a_comparison_elsewhere_says_what_is_missing(recipe: Path) -> None:
    done = luthier("compare", recipe, "--on", "slurm", env={"PATH": "/nowhere"})
    assert done.returncode == 2 and "sbatch is not installed" in done.stderr
