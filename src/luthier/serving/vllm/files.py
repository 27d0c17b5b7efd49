"""Writes a folder from which another machine serves with vLLM: command, container, compose and Kubernetes files.

It contains the adapters and no secrets. The base is given by its hub id, or mounted if it is a folder.
"""

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from luthier.core.errors import InputError
from luthier.core.events import Progress
from luthier.core.files import staged
from luthier.core.shell import public
from luthier.core.strict_json import to_json
from luthier.serving.http.settings import ServerLimits
from luthier.serving.vllm.command import GUARD, PLUGIN, VERSION, VllmPlan, arguments, vllm_environment

CONSTANTS = {
    "VERSION": VERSION,
    "PLUGIN": PLUGIN,
    "MODEL": "/model",
    "CACHE": "/cache",
    "PORT": 8000,
    "USER": 1000,
    "FIRST_START": 20 * 60,
}
"""For the templates: versions; the mount point of the base, the download cache, port and user in the container; seconds
that the first start may take, including downloads."""
TOKENIZER_FILES = ("tokenizer*", "*.jinja", "*.model", "vocab.*", "merges.txt", "special_tokens*", "added_tokens*")
RENDERED = ("serve.sh", "Containerfile", "compose.yaml", "kubernetes.yaml", "README.md")


def write_files(plan: VllmPlan, limits: ServerLimits, dtype: str, target: Path, progress: Progress) -> None:
    """Write all files into the new folder `target`, or nothing."""
    target = target.expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--write {target} already exists and is not empty", fix="another folder, or move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name that Kubernetes and container registries accept.
    name = re.sub(r"[^a-z0-9]+", "-", target.name.lower()).strip("-")[:40].strip("-") or "models"
    with staged(target) as folder:
        adapters = _copy_adapters(plan, folder)
        tokenizer = None if plan.tokenizer is None else "tokenizer"
        if plan.tokenizer is not None:
            (folder / "tokenizer").mkdir()
            for file in (
                file
                for pattern in (*TOKENIZER_FILES, "generation_config.json")
                for file in plan.tokenizer.glob(pattern)
            ):
                if file.is_file():
                    shutil.copyfile(file, folder / "tokenizer" / file.name)
        shutil.copytree(GUARD, folder / "guard", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / ".dockerignore").write_text("*\n!adapters\n!tokenizer\n!guard\n!serve.sh\n", encoding="utf-8")
        options = arguments(plan, limits, dtype, tokenizer=tokenizer, adapters=adapters)
        for rendered, text in render(plan, limits, name, options).items():
            (folder / rendered).write_text(text, encoding="utf-8")
        (folder / "serve.sh").chmod(0o755)
    progress.stage(f"written: {target}")
    progress.note(f"{target}/README.md lists the commands; {len(plan.adapters)} adapters were copied")


def _copy_adapters(plan: VllmPlan, folder: Path) -> dict[str, str]:
    """Copy the adapters; return name -> path relative to `folder`, without special characters."""
    paths: dict[str, str] = {}
    for name, source in plan.adapters.items():
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "adapter"
        while f"adapters/{plain}" in paths.values():
            plain += "-2"
        paths[name] = f"adapters/{plain}"
        copy = folder / paths[name]
        copy.mkdir(parents=True)
        shutil.copyfile(source / "adapter_model.safetensors", copy / "adapter_model.safetensors")
        settings = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = CONSTANTS["MODEL"] if plan.folder else plan.base.path
        text = to_json(settings, indent=2, sort_keys=True)
        (copy / "adapter_config.json").write_text(text, encoding="utf-8")
    return paths


def render(plan: VllmPlan, limits: ServerLimits, name: str, options: Sequence[str]) -> dict[str, str]:
    """Return file name -> text from the templates beside this file; `options` are those of `vllm serve MODEL`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"shell": lambda text: shlex.quote(str(text)), "yaml": _yaml}
    size = sum(file.stat().st_size for file in plan.folder.glob("*") if file.is_file()) if plan.folder else 0
    messages = [{"role": "user", "content": "Hello"}]
    values: dict[str, Any] = CONSTANTS | {
        "plan": plan,
        "name": name,
        "models": [plan.name, *plan.adapters],
        "model": plan.folder or plan.base.path,
        "place": f"`{public(str(plan.folder or plan.base.path))}`",
        "environment": vllm_environment(plan, None),
        "options": _lines(options),
        # Running requests get their grace period, and vLLM some time to exit.
        "stop_seconds": int(limits.grace) + 30,
        "storage": f"{max(1, -(-size * 5 // (4 * 2**30)))}Gi" if plan.folder else "50Gi",
        "example": json.dumps({"model": [*plan.adapters, plan.name][0], "messages": messages}, ensure_ascii=False),
    }
    return {file: templates.get_template(f"{file}.jinja").render(values) for file in RENDERED}


def _lines(options: Sequence[str]) -> list[str]:
    """Return one line for each option with its values, quoted for a shell."""
    lines: list[list[str]] = []
    for word in options:
        if word.startswith("--") or not lines:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return [" ".join(line) for line in lines]


def _yaml(text: str) -> str:
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**6)).strip()
