"""Kubernetes: a TrainJob of Kubeflow Trainer v2 on its runtime torch-distributed, the recipe in a ConfigMap."""

from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from luthier.core.errors import InputError
from luthier.core.events import Progress
from luthier.core.files import write_text
from luthier.core.shell import setting, shell_line
from luthier.launching.base import Job, call

TAKES = ("nodes", "devices", "image", "volume")
MISSING = "install it (kubernetes.io/docs/tasks/tools); --write DIR writes the files without it"
VOLUME = PurePosixPath("/luthier")
"""Where the volume lies in a container, and the working folder there: relative paths of a recipe begin here."""
RECIPE = PurePosixPath("/etc/luthier/recipe.yaml")
GRACE_SECONDS = 120
"""How long a container that is to end may save its run."""


def check(job: Job, *, written: bool) -> None:
    """InputError without image and volume, or where the run or a file of the recipe would not lie on the volume."""
    if not job.options.image or not job.options.volume:
        fix = (
            "--image NAME of a container image that has Luthier, --volume NAME of a PersistentVolumeClaim for the runs"
        )
        raise InputError("kubernetes needs an image and a volume", fix=fix)
    _on_volume(job)


def _on_volume(job: Job) -> PurePosixPath:
    """The run folder in a container. InputError where it lies outside of the working folder."""
    if not job.run.is_relative_to(Path.cwd()):
        raise InputError(f"{job.run} cannot lie on the volume", fix="run=DIR, relative to the working folder")
    for key, path in (("model.path", job.config.model.path), ("data.path", job.config.data.path)):
        if Path(path).expanduser().is_absolute() or path.startswith("~"):
            fix = f"copy it to the volume, and give its path there, such as {key}=data/{Path(path).name}"
            raise InputError(f"{key}: {path} is a path of this machine", fix=fix)
    return PurePosixPath(job.run.relative_to(Path.cwd()).as_posix())


def manifests(job: Job) -> list[dict[str, Any]]:
    """The ConfigMap and the TrainJob."""
    options, name = job.options, job.name
    run = str(_on_volume(job))
    amount = str(options.devices)
    resources = {"nvidia.com/gpu": amount} if job.on_gpu else {"cpu": amount}
    stop = ["--shutdown_timeout", GRACE_SECONDS - 20]  # torchrun would give its ranks 30 seconds
    train = shell_line("exec", "torchrun", *stop, "-m", "luthier", "train", RECIPE, setting("run", run))
    ours = {
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "volumes": [
            {"name": "luthier-runs", "persistentVolumeClaim": {"claimName": options.volume}},
            {"name": "luthier-recipe", "configMap": {"name": name}},
        ],
        "containers": [
            {
                "name": "node",
                "volumeMounts": [
                    {"name": "luthier-runs", "mountPath": str(VOLUME)},
                    {"name": "luthier-recipe", "mountPath": str(RECIPE.parent), "readOnly": True},
                ],
            }
        ],
    }
    pod = {"name": "node", "template": {"spec": {"template": {"spec": ours}}}}
    patch = {"manager": "luthier", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [pod]}}}}
    trainer = {
        "image": options.image,
        "numNodes": options.nodes,
        "numProcPerNode": options.devices,
        "command": ["bash", "-c", f"cd {VOLUME} && {train}"],
        # Models and prepared data are kept on the volume, for the other nodes and for a resume.
        "env": [{"name": key, "value": f"{VOLUME}/cache/{key.lower()}"} for key in ("HF_HOME", "LUTHIER_CACHE")],
        "resourcesPerNode": {"requests": resources, "limits": dict(resources)},
    }
    runtime = {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": "torch-distributed"}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {RECIPE.name: job.config.dump()},
        },
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": name},
            "spec": {"runtimeRef": runtime, "trainer": trainer, "runtimePatches": [patch]},
        },
    ]


class _Blocks(yaml.SafeDumper):
    """Writes a text of several lines as one that can be read."""


_Blocks.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def write(job: Job, folder: Path, progress: Progress) -> str:
    """Write trainjob.yaml; returns the command that applies it."""
    text = yaml.dump_all(manifests(job), Dumper=_Blocks, sort_keys=False, allow_unicode=True)
    write_text(folder / "trainjob.yaml", text)
    for path in (job.config.model.path, job.config.data.path):
        if Path(path).exists():
            progress.note(f"{path} is read from the volume: copy it there, to {VOLUME / path}")
    return shell_line("kubectl", "apply", "--filename", folder / "trainjob.yaml")


def start(job: Job, folder: Path, progress: Progress) -> None:
    """Apply the manifests."""
    call(["kubectl", "apply", "--request-timeout=20s", "--filename", str(folder / "trainjob.yaml")], MISSING)
    progress.stage(f"applied: TrainJob {job.name}")
    progress.note(f"follow it: kubectl logs --follow --selector jobset.sigs.k8s.io/jobset-name={job.name}")
    progress.note(f"stop it: kubectl delete trainjob {job.name}")
