"""A folder from which another machine serves with vLLM: command, container, compose and Kubernetes files, adapters.

Nothing secret stands in it. The base is named by its hub id, or mounted where it is a folder.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from luthier.core.errors import InputError
from luthier.core.events import Progress
from luthier.core.shell import public
from luthier.core.strict_json import to_json
from luthier.serving.settings import Sizes
from luthier.serving.vllm.command import GUARD, PLUGIN, VERSION, Plan, arguments, environment

MODEL, CACHE, PORT, USER = "/model", "/cache", 8000, 1000
"""In the container: a mounted base, what is downloaded, the port, and who runs it."""
KEEP = (
    "tokenizer*",
    "*.jinja",
    "*.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
"""Files of a run's folder that its tokenizer needs."""
FIRST_START = 20 * 60
"""Seconds that a first start may take, downloads with it."""


def write(plan: Plan, sizes: Sizes, dtype: str, target: Path, progress: Progress) -> None:
    """Write all of it into the new folder `target`, or nothing."""
    from luthier.core.files import staged

    target = target.expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--write {target}: there is something already", fix="another folder, or move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    name = slug(target.name)
    with staged(target) as folder:
        places = _adapters(plan, folder)
        if plan.tokenizer is not None:
            _tokenizer(plan.tokenizer, folder / "tokenizer")
        shutil.copytree(GUARD, folder / "guard", ignore=shutil.ignore_patterns("__pycache__"))
        options = arguments(
            plan, sizes, dtype, tokenizer="tokenizer" if plan.tokenizer is not None else None, adapters=places
        )
        texts = {
            "serve.sh": script(plan, options),
            "Containerfile": containerfile(plan),
            ".dockerignore": "*\n!adapters\n!tokenizer\n!guard\n!serve.sh\n",
            "compose.yaml": _yaml(compose(plan, name, sizes)),
            "kubernetes.yaml": "---\n".join(_yaml(each) for each in kubernetes(plan, name, sizes)),
            "README.md": readme(plan, name),
        }
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
        (folder / "serve.sh").chmod(0o755)
    progress.stage(f"written: {target}")
    progress.note(f"{target}/README.md has the commands; {len(plan.adapters)} adapters lie there as copies")


def slug(name: str) -> str:
    """A name as Kubernetes and container registries take one."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "models"


def _adapters(plan: Plan, folder: Path) -> dict[str, str]:
    """Copy the adapters; name -> place below `folder`, in letters that no shell minds."""
    places: dict[str, str] = {}
    for name, source in plan.adapters.items():
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "adapter"
        while f"adapters/{plain}" in places.values():
            plain += "-2"
        places[name] = f"adapters/{plain}"
        copy = folder / places[name]
        copy.mkdir(parents=True)
        shutil.copyfile(source / "adapter_model.safetensors", copy / "adapter_model.safetensors")
        settings = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = plan.base.path if plan.folder is None else MODEL
        text = to_json(settings, indent=2, sort_keys=True)
        (copy / "adapter_config.json").write_text(text, encoding="utf-8")
    return places


def _tokenizer(source: Path, folder: Path) -> None:
    folder.mkdir()
    for file in sorted({file for pattern in KEEP for file in source.glob(pattern) if file.is_file()}):
        shutil.copyfile(file, folder / file.name)


def script(plan: Plan, options: list[str]) -> str:
    """serve.sh: becomes vLLM. What differs from place to place comes from the environment."""
    lines = "".join(f" \\\n  {words}" for words in _lines(options))
    fixed = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment(plan, None).items())
    return f"""#!/bin/sh
# Serves the models of this folder with vLLM. From the environment: SERVE_HOST, SERVE_PORT, SERVE_MODEL (folder or hub
# id of the base), VLLM (the program), and the key in VLLM_API_KEY or in the file VLLM_API_KEY_FILE. Options of vLLM's
# may follow.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")"
key_file=${{VLLM_API_KEY_FILE:-/run/secrets/vllm_api_key}}
if [ -z "${{VLLM_API_KEY:-}}" ] && [ -r "$key_file" ]; then
  VLLM_API_KEY=$(cat "$key_file")
  export VLLM_API_KEY
fi
host=${{SERVE_HOST:-127.0.0.1}}
case $host in
  127.* | localhost | ::1) ;;
  *)
    if [ -z "${{VLLM_API_KEY:-}}" ]; then
      echo "error: on $host other machines can ask, so it needs a key: VLLM_API_KEY" >&2
      exit 2
    fi
    ;;
esac
model=${{SERVE_MODEL:-}}
if [ -z "$model" ]; then
  model={shlex.quote(str(plan.folder or plan.base.path))}
fi
{fixed}export PYTHONPATH="$PWD/guard${{PYTHONPATH:+:$PYTHONPATH}}"
exec "${{VLLM:-vllm}}" serve "$model"{lines} \\
  --host "$host" --port "${{SERVE_PORT:-{PORT}}}" "$@"
"""


def _lines(options: list[str]) -> list[str]:
    """Options of a command, each with its values on a line of its own, quoted for a shell."""
    lines: list[list[str]] = []
    for word in options:
        if word.startswith("--") or not lines:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return [" ".join(line) for line in lines]


def containerfile(plan: Plan) -> str:
    """The image: vLLM's own, with the adapters and the tokenizer in it."""
    packed = ""
    if plan.base.quantize == "nf4":
        packed = f"# Packs the base in 4 bit.\nRUN python3 -m pip install --no-cache-dir vllm-bnb-plugin=={PLUGIN}\n"
    copied = [*(["adapters"] if plan.adapters else []), *(["tokenizer"] if plan.tokenizer is not None else []), "guard"]
    return (
        f"FROM vllm/vllm-openai:v{VERSION}\n{packed}"
        + "".join(f"COPY {name} /srv/{name}\n" for name in copied)
        + f"COPY --chmod=755 serve.sh /srv/serve.sh\nRUN mkdir -p {CACHE} && chown {USER}:{USER} {CACHE}\n"
        f"ENV HOME=/tmp USER=vllm HF_HOME={CACHE}/huggingface MODELSCOPE_CACHE={CACHE}/modelscope \\\n"
        f"    VLLM_CACHE_ROOT={CACHE}/vllm SERVE_HOST=0.0.0.0 SERVE_PORT={PORT}\n"
        f'USER {USER}:{USER}\nWORKDIR /srv\nEXPOSE {PORT}\nENTRYPOINT ["/srv/serve.sh"]\n'
    )


def compose(plan: Plan, name: str, sizes: Sizes) -> dict[str, Any]:
    """compose.yaml: one GPU, nothing to write to but the cache, the port on this machine alone unless it is told."""
    volumes: list[dict[str, Any]] = [{"type": "volume", "source": "cache", "target": CACHE}]
    if plan.folder is not None:
        source = str(plan.folder).replace("$", "$$")  # compose would look for a variable
        volumes.append({"type": "bind", "source": source, "target": MODEL, "read_only": True})
    asked = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{PORT}/health', timeout=5)"
    service = {
        "image": f"{name}:{VERSION}",
        "build": {"context": ".", "dockerfile": "Containerfile"},
        "ports": [f"${{SERVE_BIND:-127.0.0.1}}:${{SERVE_PORT:-{PORT}}}:{PORT}"],
        "environment": _told(plan) | ({} if plan.folder else {"HF_TOKEN": "${HF_TOKEN:-}"}),
        "secrets": ["vllm_api_key"],
        "volumes": volumes,
        "shm_size": "2gb",
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "stop_grace_period": f"{_patience(sizes)}s",
        "healthcheck": {
            "test": ["CMD", "python3", "-c", asked],
            "interval": "10s",
            "timeout": "6s",
            "retries": 3,
            "start_period": f"{FIRST_START}s",
        },
        "deploy": {
            "resources": {"reservations": {"devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}}
        },
    }
    return {
        "name": name,
        "services": {"vllm": service},
        "secrets": {"vllm_api_key": {"environment": "VLLM_API_KEY"}},
        "volumes": {"cache": {}},
    }


def kubernetes(plan: Plan, name: str, sizes: Sizes) -> list[dict[str, Any]]:
    """kubernetes.yaml: a claim for what is downloaded or for the base, a deployment, a service inside the cluster."""
    labels = {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": name}
    mounts = [{"name": "models", "mountPath": MODEL if plan.folder else CACHE, "readOnly": plan.folder is not None}]
    volumes: list[dict[str, Any]] = [
        {"name": "models", "persistentVolumeClaim": {"claimName": f"{name}-models"}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
    ]
    if plan.folder:
        volumes.append({"name": "cache", "emptyDir": {}})
        mounts.append({"name": "cache", "mountPath": CACHE})
    mounts += [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}]
    container = {
        "name": "vllm",
        "image": f"{name}:{VERSION}",
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": "http", "containerPort": PORT}],
        "env": _kubernetes_environment(plan, name),
        "resources": {
            "requests": {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"},
            "limits": {"memory": "32Gi", "nvidia.com/gpu": "1"},
        },
        "startupProbe": _probe(10, FIRST_START // 10),
        "readinessProbe": _probe(5, 2),
        "livenessProbe": _probe(20, 3),
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a service named vllm would set VLLM_PORT, which vLLM reads otherwise
        "terminationGracePeriodSeconds": _patience(sizes),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": _storage(plan)}}}
    deployment = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},  # another one beside it would wait for a second GPU
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    service = {"type": "ClusterIP", "selector": labels, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]}
    return [
        _object("v1", "PersistentVolumeClaim", f"{name}-models", labels, claim),
        _object("apps/v1", "Deployment", name, labels, deployment),
        _object("v1", "Service", name, labels, service),
    ]


def _object(version: str, kind: str, name: str, labels: Mapping[str, str], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": dict(labels)}, "spec": spec}


def _kubernetes_environment(plan: Plan, name: str) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in _told(plan).items()]
    made.append({"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": f"{name}-key", "key": "api-key"}}})
    if not plan.folder:
        hub = {"name": f"{name}-hub", "key": "token", "optional": True}
        made.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": hub}})
    return made


def _told(plan: Plan) -> dict[str, str]:
    """What the container is told of its place: where a base lies that is mounted."""
    return {"SERVE_MODEL": MODEL} if plan.folder else {}


def _probe(period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _patience(sizes: Sizes) -> int:
    """Seconds between the word to stop and the kill: running answers get theirs, and vLLM some to end."""
    return int(sizes.patience) + 30


def _storage(plan: Plan) -> str:
    if plan.folder is None:
        return "50Gi"
    size = sum(file.stat().st_size for file in plan.folder.glob("*") if file.is_file())
    return f"{max(1, -(-size * 5 // (4 * 2**30)))}Gi"


class _Plain(yaml.SafeDumper):
    """Says a thing twice where it stands twice, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120))


def readme(plan: Plan, name: str) -> str:
    """README.md: the commands, from one machine to a cluster."""
    models = ", ".join(f"`{each}`" for each in [plan.name, *plan.adapters])
    place = f"`{public(str(plan.folder or plan.base.path))}`"
    place += "" if plan.folder else ", which is downloaded at the first start"
    plugin = f" vllm-bnb-plugin=={PLUGIN}" if plan.base.quantize == "nf4" else ""
    pull = (
        ""
        if plan.folder
        else f"    kubectl create secret generic {name}-hub --from-literal=token=...  # a gated base\n"
    )
    asked = json.dumps(
        {"model": next(iter(plan.adapters), plan.name), "messages": [{"role": "user", "content": "Hello"}]},
        ensure_ascii=False,
    )
    moved = (
        f"The claim `{name}-models` must hold the files of {place}: put them there with a pod of your own.\n\n"
        if plan.folder
        else ""
    )
    return f"""# {name}

Models under OpenAI's API: {models}. The base is {place}.

The key comes from the environment or from a secret, and stands in none of these files. Without one the server listens
on this machine alone. Of what vLLM serves, `/v1/...`, `/health` and `/metrics` answer, and `/v1/...` asks for the key.

## On this machine

    python3 -m venv vllm && vllm/bin/pip install vllm=={VERSION}{plugin}
    VLLM=vllm/bin/vllm ./serve.sh

`SERVE_PORT=8001` takes another port, `SERVE_MODEL=...` another place of the base, and `SERVE_HOST=0.0.0.0` lets others
ask, with `VLLM_API_KEY=...`. Options of vLLM's may follow: `./serve.sh --gpu-memory-utilization 0.8`.

## In a container

    export VLLM_API_KEY=$(openssl rand -hex 32)
    docker compose up --build --detach
    docker compose logs --follow

It is published on 127.0.0.1; `SERVE_BIND=0.0.0.0` publishes it on all addresses: put TLS before it.

## In a cluster

    docker build -f Containerfile -t REGISTRY/{name}:{VERSION} . && docker push REGISTRY/{name}:{VERSION}
    kubectl create secret generic {name}-key --from-literal=api-key="$(openssl rand -hex 32)"
{pull}    kubectl apply -f kubernetes.yaml
    kubectl set image deployment/{name} vllm=REGISTRY/{name}:{VERSION}
    kubectl rollout status deployment/{name}

{moved}Memory, processors and the size of the claim in kubernetes.yaml are a start; suit them to the model.

## Ask

    curl http://127.0.0.1:{PORT}/v1/chat/completions -H "Authorization: Bearer $VLLM_API_KEY" \\
      -H 'Content-Type: application/json' \\
      -d {shlex.quote(asked)}
"""
