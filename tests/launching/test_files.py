"""`luthier launch --write`, and what is an error before anything is started: no cluster is needed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from luthier.core.errors import InputError, MissingExtra
from luthier.launching import base, ray, slurm
from luthier.launching.base import check_address
from luthier.recipe.config import RunConfig
from tests.cli.test_cli import main
from tests.launching.conftest import Program

ENGINES = {
    "slurm": ["--nodes", "2", "--devices", "3", "--partition", "gpu,long", "--time", "1-02:00:00"],
    "kubernetes": ["--nodes", "2", "--devices", "3", "--image", "registry/image:1", "--volume", "runs"],
    "ray": ["--workers", "2", "--address", "auto"],
}
NO_MODEL = ["model=builtin"]
"""A model that lies nowhere on this machine, as Kubernetes asks for."""


def written(engine: str, capsys: pytest.CaptureFixture[str], *more: str, options: list[str] | None = None) -> Path:
    given = ENGINES[engine] if options is None else options
    words = ["launch", "recipe.yaml", "--on", engine, *NO_MODEL, *given, "--write", "to", *more]
    code, _, err = main(words, capsys)
    assert code == 0, err
    return Path("to").absolute()


def scripts(folder: Path) -> list[Path]:
    return [*folder.glob("*.sh")]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_recipe_is_written_as_it_was_resolved(
    engine: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(engine, capsys, "train.lr=0.5")
    wanted = RunConfig.load(recipe, [*NO_MODEL, "train.lr=0.5"])
    assert RunConfig.load(folder / "recipe.yaml") == wanted
    assert not Path("runs").exists(), "nothing was started"


@pytest.mark.parametrize("engine", ["slurm", "ray"])
@pytest.mark.parametrize("more", [[], ["model.device=auto"]], ids=["cpu", "gpu"])
def test_scripts_are_valid_bash(engine: str, more: list[str], recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = scripts(written(engine, capsys, *more))
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed; bash -n found nothing")
    # SC2016 asks whether $HOME in single quotes is meant: it is a part of the odd name.
    found = subprocess.run(["shellcheck", "--exclude=SC2016", script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_a_slurm_job_asks_for_what_was_asked(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = scripts(written("slurm", capsys, "model.device=auto"))
    asked = [line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert {"--nodes=2", "--gpus-per-node=3", "--partition=gpu,long", "--time=1-02:00:00"} <= {*asked}
    assert {"--signal=B:USR1@300", "--requeue", "--open-mode=append"} <= {*asked}
    shutil.rmtree("to")
    (script,) = scripts(written("slurm", capsys, options=[]))
    assert "gpu" not in script.read_text() and "#SBATCH --cpus-per-task=1" in script.read_text()
    assert "--partition" not in script.read_text() and "--time" not in script.read_text()


SRUN = """
printf '%s\\n' "$@" >"$LEFT/words"
shift 6
echo "$@" >"$LEFT/torchrun"
trap 'echo saved >"$LEFT/signal"; exit 138' USR1
touch "$LEFT/started"
for _ in $(seq 100); do sleep 0.1; done
"""


def job(script: Path, left: Path, **environment: str) -> subprocess.Popen[str]:
    for each in ("words", "signal", "started", "requeued"):
        (left / each).unlink(missing_ok=True)
    place = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", **environment}
    return subprocess.Popen(["bash", script], env={**os.environ, **place}, text=True, cwd="/")


def until(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.02)


SCONTROL = """
if [ "$1" = show ]; then printf 'n1\\nn2\\n'; else echo "$@" >"$LEFT/requeued"; fi
"""


def test_a_warned_job_is_saved_and_goes_back_into_the_queue(
    recipe: Path, capsys: pytest.CaptureFixture[str], program: Program
) -> None:
    (script,) = scripts(written("slurm", capsys))
    left = program("srun", SRUN)
    program("scontrol", SCONTROL)
    running = job(script, left)
    until(left / "started")
    running.send_signal(10)
    assert running.wait(20) == 0
    assert (left / "signal").read_text() == "saved\n", "the ranks have heard of it"
    assert (left / "requeued").read_text() == "requeue 7\n"
    words = (left / "words").read_text().splitlines()
    assert words[words.index("--run") + 1] == str(Path("runs/recipe-lora").absolute()), "one word, whatever is in it"
    assert "--rdzv-endpoint=n1:20007" in words and "--nnodes=2" in words and "--nproc-per-node=3" in words
    assert str(Path("to/recipe.yaml").absolute()) in words and "seed=4" not in words


def test_a_job_that_fails_or_is_done_does_not_go_back(
    recipe: Path, capsys: pytest.CaptureFixture[str], program: Program
) -> None:
    (script,) = scripts(written("slurm", capsys))
    left = program("srun", "exit 3")
    program("scontrol", SCONTROL)
    assert job(script, left).wait(20) == 3 and not (left / "requeued").exists()
    program("srun", "exit 0")
    assert job(script, left).wait(20) == 0 and not (left / "requeued").exists()
    program("srun", SRUN)
    run = Path("runs/recipe-lora")
    run.mkdir(parents=True)
    (run / "result.json").write_text("{}")
    running = job(script, left)
    until(left / "started")
    running.send_signal(10)
    assert running.wait(20) == 138 and not (left / "requeued").exists(), "a finished run has nothing to resume"


def test_each_task_of_an_array_has_a_folder_and_a_seed_of_its_own(
    recipe: Path, capsys: pytest.CaptureFixture[str], program: Program
) -> None:
    (script,) = scripts(written("slurm", capsys))
    left = program("srun", 'printf "%s\\n" "$@" >"$LEFT/words"')
    program("scontrol", SCONTROL)
    assert job(script, left, SLURM_ARRAY_TASK_ID="4").wait(20) == 0
    words = (left / "words").read_text().splitlines()
    assert words[words.index("--run") + 1] == str(Path("runs/recipe-lora/4").absolute()) and words[-1] == "seed=4"


def test_a_job_is_submitted_and_slurm_s_own_error_is_passed_on(
    recipe: Path, capsys: pytest.CaptureFixture[str], program: Program
) -> None:
    left = program("sbatch", '[ "$1" = --test-only ] || printf "%s\\n" "$PWD" "$@" >"$LEFT/words"; echo "12;cluster"')
    code, out, err = main(["launch", "recipe.yaml", "--on", "slurm"], capsys)
    assert code == 0 and "submitted as job 12" in out, err
    folder = Path("runs/recipe-lora-launch").absolute()
    assert (left / "words").read_text().splitlines() == [str(folder), "--parsable", str(folder / "job.sh")]
    message = "Batch job submission failed: Requested node configuration is not available"
    program(
        "sbatch", f'echo "sbatch: error: CPU count per node can not be satisfied\nsbatch: error: {message}" >&2; exit 1'
    )
    code, _, err = main(["launch", "recipe.yaml", "--on", "slurm", "--devices", "1000"], capsys)
    assert code == 2 and err == f"error: sbatch: {message}\n"


def test_a_train_job_of_kubernetes(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written("kubernetes", capsys, "model.device=auto", "run=runs/A b")
    config, job = yaml.safe_load_all((folder / "trainjob.yaml").read_text())
    assert config["kind"] == "ConfigMap" and job["kind"] == "TrainJob"
    assert job["apiVersion"] == "trainer.kubeflow.org/v1alpha1" and job["metadata"] == config["metadata"]
    assert config["metadata"]["name"] == "luthier-a-b"
    assert RunConfig.model_validate(yaml.safe_load(config["data"]["recipe.yaml"])) == RunConfig.load(
        recipe, [*NO_MODEL, "model.device=auto"]
    )
    spec = job["spec"]
    assert spec["runtimeRef"]["name"] == "torch-distributed"
    trainer = spec["trainer"]
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == ("registry/image:1", 2, 3)
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": "3"}
    assert trainer["command"][:2] == ["bash", "-c"] and trainer["command"][2].startswith(
        "cd /luthier && exec torchrun "
    )
    assert trainer["command"][2].endswith(" -m luthier train /etc/luthier/recipe.yaml 'run=runs/A b'")
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    mounts = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    assert volumes["luthier-runs"]["persistentVolumeClaim"] == {"claimName": "runs"}
    assert volumes["luthier-recipe"]["configMap"] == config["metadata"]
    assert mounts == {"luthier-runs": "/luthier", "luthier-recipe": "/etc/luthier"}


def test_kubectl_applies_it_or_says_why_not(
    recipe: Path, capsys: pytest.CaptureFixture[str], program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["launch", "recipe.yaml", "--on", "kubernetes", *NO_MODEL, "--image", "i", "--volume", "v"]
    left = program("kubectl", 'printf "%s\\n" "$@" >"$LEFT/words"')
    code, out, err = main(words, capsys)
    assert code == 0 and "applied: TrainJob luthier-recipe-lora" in out, err
    file = str(Path("runs/recipe-lora-launch/trainjob.yaml").absolute())
    assert (left / "words").read_text().splitlines()[-2:] == ["--filename", file]
    program("kubectl", 'echo "The connection to the server localhost:8080 was refused" >&2; exit 1')
    code, _, err = main(words, capsys)
    assert code == 2 and err == "error: kubectl: The connection to the server localhost:8080 was refused\n"
    monkeypatch.setattr(base.shutil, "which", lambda name: None)
    code, _, err = main(words, capsys)
    assert code == 2 and "kubectl is not installed" in err and "--write DIR" in err


def test_the_script_for_ray_starts_the_run_with_its_recipe_and_folder(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (script,) = scripts(written("ray", capsys))
    text = script.read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("exec "))
    shown = subprocess.run(["bash", "-c", f'printf "%s\\n" {line[5:]}'], capture_output=True, text=True, check=True)
    words = shown.stdout.splitlines()[1:]
    assert words[:4] == ["-m", "luthier", "launch", str(Path("to/recipe.yaml").absolute())]
    assert words[4:] == [
        *("--run", str(Path("runs/recipe-lora").absolute()), "--on", "ray"),
        *("--address", "auto", "--workers", "2", "--retries", "3"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe.yaml", "--on", "moon"], "unknown engine 'moon'; choose one of: ray, slurm, kubernetes"),
        (["recipe.yaml", "--on", "slrm"], "did you mean 'slurm'?"),
        (["recipe.yaml"], "Missing option '--on'"),
        (["none.yaml", "--on", "slurm"], "none.yaml: no such recipe"),
        (["--on", "slurm"], "no data given"),
        (["recipe.yaml", "--on", "slurm", "--workers", "2"], "--workers has no effect on slurm"),
        (["recipe.yaml", "--on", "ray", "--nodes", "2"], "--nodes has no effect on ray"),
        (["recipe.yaml", "--on", "ray", "--workers", "0"], "'--workers'"),
        (["recipe.yaml", "--on", "slurm", "--devices", "0"], "'--devices'"),
        (["recipe.yaml", "--on", "slurm", "--nodes", "-1"], "'--nodes'"),
        (["recipe.yaml", "--on", "slurm", "--partition", "a b"], "--partition 'a b' is no name"),
        (["recipe.yaml", "--on", "slurm", "--time", "tomorrow"], "--time 'tomorrow' is no time"),
        (["recipe.yaml", "--on", "slurm", "--write", "."], "is not empty"),
        (["recipe.yaml", "--on", "kubernetes"], "kubernetes needs an image and a volume"),
        (["recipe.yaml", "--on", "kubernetes", "--image", "i", "--volume", "v"], "is a path of this machine"),
        (
            ["recipe.yaml", "--on", "kubernetes", "--image", "i", "--volume", "v", *NO_MODEL, "run=/elsewhere/run"],
            "/elsewhere/run cannot lie on the volume",
        ),
        (["recipe.yaml", "--on", "slurm"], "sbatch is not installed on this machine"),
    ],
    ids=lambda value: " ".join(value[-3:]) if isinstance(value, list) else "",
)
def test_bad_input_is_one_message_and_starts_nothing(
    words: list[str],
    message: str,
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base.shutil, "which", lambda name: None)
    code, _, err = main(["launch", *words], capsys)
    assert code == 2 and message in err and len(err.splitlines()) <= 2, err
    assert not Path("runs/recipe-lora").exists()


def test_ray_that_is_missing_names_the_extra(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.core.errors.find_spec", lambda name: None)
    code, _, err = main(["launch", "recipe.yaml", "--on", "ray"], capsys)
    assert code == 2 and "ray is not installed" in err and "'ray[train]>=2.60'" in err
    with pytest.raises(MissingExtra, match="ray is not installed"):
        ray.check_ray("")


def test_an_address_that_does_not_resolve_or_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.core.errors.find_spec", lambda name: name)
    with pytest.raises(InputError, match=r"--address: the host 'nowhere\.invalid' cannot be found"):
        ray.check_ray("nowhere.invalid:6379")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(InputError, match=f"nothing answers at 127.0.0.1:{port}"):
            ray.check_ray(f"ray://127.0.0.1:{port}")
        closed.listen()
        ray.check_ray(f"127.0.0.1:{port}")
    for wrong in ("http://a:1", "a:b:c", ":6379", "a:99999999", "a:6379/path", "ray://"):
        with pytest.raises(InputError, match="is no address of Ray"):
            ray.check_ray(wrong)

    def silent(place: tuple[str, int], timeout: float) -> None:
        assert place == ("203.0.113.1", 6379) and timeout <= 5
        raise TimeoutError("timed out")

    monkeypatch.setattr(base.socket, "create_connection", silent)
    with pytest.raises(InputError, match=r"nothing answers at 203.0.113.1:6379 within 5 s \(timed out\)"):
        check_address("--address", "203.0.113.1", 6379)


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "wanted"),
    [
        ([{"CPU": 8}], 1, "cpu", {"CPU": 8}),
        ([{"CPU": 8}], 3, "auto", {"CPU": 2}),
        ([{"CPU": 6}, {"CPU": 6}], 3, "cpu", {"CPU": 3}),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 4}], 2, "auto", {"CPU": 4, "GPU": 1}),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 4}], 2, "cpu", {"CPU": 4}),
    ],
)
def test_each_worker_of_ray_gets_what_all_can_have(
    nodes: list[dict[str, float]], workers: int, device: str, wanted: dict[str, float]
) -> None:
    assert ray.shares(nodes, workers, device) == wanted


@pytest.mark.parametrize(
    ("nodes", "workers", "device"),
    [([{"CPU": 2}], 3, "cpu"), ([{"CPU": 8}], 1, "cuda"), ([{"CPU": 4, "GPU": 1}], 2, "auto")],
)
def test_a_cluster_that_is_too_small_is_an_error(nodes: list[dict[str, float]], workers: int, device: str) -> None:
    with pytest.raises(InputError, match="fewer --workers"):
        ray.shares(nodes, workers, device)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("", 300),
        ("3", 60),
        ("3:30", 70),
        ("24:00:00", 300),
        ("1-00", 300),
        ("0-00:06", 120),
        ("0-0:0:9", 3),
        ("0", 300),
    ],
)
def test_a_job_is_warned_in_time_to_save(limit: str, seconds: int) -> None:
    assert slurm.warning_seconds(limit) == seconds


def test_times_as_slurm_writes_them() -> None:
    for time_ in ("30", "30:00", "12:00:00", "1-12", "1-12:30", "2-00:00:00", ""):
        slurm.check_limits("", time_)
    for wrong in ("1h", "1:2:3:4", "-5", "1-", "12:00\n"):
        with pytest.raises(InputError, match="is no time"):
            slurm.check_limits("", wrong)


def test_the_recipe_of_a_launch_is_json_and_yaml(recipe: Path) -> None:
    config = RunConfig.load(recipe)
    assert RunConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
