"""`luthier serve --engine vllm`: start vLLM, or write a folder without secrets from which another machine starts it."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.core.errors import InputError, MissingExtra
from luthier.core.events import Progress
from luthier.core.files import staged
from luthier.core.shell import public, shell_line
from luthier.core.strict_json import to_json
from luthier.recipe.consent import Allow
from luthier.serving.http.settings import ServerAddress, ServerLimits
from luthier.serving.vllm.command import GUARD, PLUGIN, VERSION, VllmPlan, arguments, plan_of, vllm_environment

TOKENIZER_FILES = "tokenizer* *.jinja *.model vocab.* merges.txt special_tokens* added_tokens* generation_config.json"


def serve_vllm(
    given: Sequence[str],
    address: ServerAddress,
    limits: ServerLimits,
    *,
    dtype: str,
    vllm: str | None,
    write: Path | None,
    progress: Progress,
    allow_code: Allow = False,
) -> None:
    """Replace this process by vLLM, or write all that another machine needs to start it; errors are reported first."""
    for name in ("max_waiting", "max_body"):
        if getattr(limits, name) != getattr(ServerLimits(), name):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} has no effect on vLLM", fix="leave it out, or --engine luthier")
    plan = plan_of(given, allow_code)
    if write is not None:
        write_files(plan, limits, dtype, write, progress)
        return
    program = find_vllm(vllm)
    address.check()
    with address.bind() as free:  # a free port if it is 0
        port: int = free.getsockname()[1]
    words = [program, "serve", str(plan.folder or plan.base.path), *arguments(plan, limits, dtype)]
    words += ["--host", address.host, "--port", str(port)]
    if plan.base.quantize == "nf4":
        progress.note(f"the base is quantized: vLLM needs a plugin (pip install vllm-bnb-plugin=={PLUGIN})")
    progress.stage(shell_line(*words))
    inherited = {name: value for name, value in os.environ.items() if name != "LUTHIER_API_KEY"}
    path = os.pathsep.join(filter(None, (str(GUARD), inherited.get("PYTHONPATH"))))
    sys.stdout.flush()
    os.execve(program, words, inherited | vllm_environment(plan, address.key) | {"PYTHONPATH": path})


def find_vllm(vllm: str | None) -> str:
    """Return the path of the vllm program; MissingExtra, with the commands that install it, if there is none."""
    found = shutil.which(Path(vllm).expanduser() if vllm else "vllm")
    if found:
        return str(Path(found).absolute())
    if vllm:
        raise InputError(f"--vllm {vllm} is not a program", fix="give the path of vllm in its environment's bin folder")
    message = "vLLM is not installed; it pins its own version of torch and needs a separate environment"
    install = f"python -m venv vllm && vllm/bin/pip install vllm=={VERSION}, then --vllm vllm/bin/vllm"
    raise MissingExtra(message, fix=f"{install}; or --write DIR, which writes all that another machine needs")


def write_files(plan: VllmPlan, limits: ServerLimits, dtype: str, target: Path, progress: Progress) -> None:
    """Write all files into the new folder `target`, or nothing."""
    target = target.expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--write {target} already exists and is not empty", fix="another folder, or move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name that Kubernetes and container registries accept.
    name = re.sub(r"[^a-z0-9]+", "-", target.name.lower()).strip("-")[:40].strip("-") or "models"
    with staged(target) as folder:
        adapters: dict[str, str] = {}
        for adapter, source in plan.adapters.items():
            plain = re.sub(r"[^A-Za-z0-9._-]+", "-", adapter).strip("-.") or "adapter"
            while f"adapters/{plain}" in adapters.values():
                plain += "-2"
            adapters[adapter] = f"adapters/{plain}"
            copy = folder / adapters[adapter]
            copy.mkdir(parents=True)
            shutil.copyfile(source / "adapter_model.safetensors", copy / "adapter_model.safetensors")
            settings = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
            settings["base_model_name_or_path"] = "/model" if plan.folder else plan.base.path
            (copy / "adapter_config.json").write_text(to_json(settings, indent=2, sort_keys=True), encoding="utf-8")
        if plan.tokenizer is not None:
            (folder / "tokenizer").mkdir()
            for file in {file for pattern in TOKENIZER_FILES.split() for file in plan.tokenizer.glob(pattern)}:
                if file.is_file():
                    shutil.copyfile(file, folder / "tokenizer" / file.name)
        shutil.copytree(GUARD, folder / "guard", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / ".dockerignore").write_text("*\n!adapters\n!tokenizer\n!guard\n!serve.sh\n", encoding="utf-8")
        render(folder, plan, limits, name, arguments(plan, limits, dtype, "tokenizer", adapters))
        (folder / "serve.sh").chmod(0o755)
    progress.stage(f"written: {target}")
    progress.note(f"{target}/README.md lists the commands; {len(plan.adapters)} adapters were copied")


def render(folder: Path, plan: VllmPlan, limits: ServerLimits, name: str, options: Sequence[str]) -> None:
    """Write the files of the templates beside this module; `options` are those of `vllm serve MODEL`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    files = FileSystemLoader(Path(__file__).parent)
    layout: Any = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    templates = Environment(loader=files, undefined=StrictUndefined, **layout)
    templates.filters["shell"] = lambda text: shlex.quote(str(text))
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    size = sum(file.stat().st_size for file in plan.folder.glob("*") if file.is_file()) if plan.folder else 0
    messages = [{"role": "user", "content": "Hello"}]
    values: dict[str, Any] = {"VERSION": VERSION, "PLUGIN": PLUGIN, "plan": plan, "name": name}
    values |= {
        "models": [plan.name, *plan.adapters],
        "model": plan.folder or plan.base.path,
        "place": f"`{public(str(plan.folder or plan.base.path))}`",
        "environment": vllm_environment(plan, None),
        # One line for each option with its values.
        "options": "".join((" \\\n  " if word.startswith("--") else " ") + shlex.quote(word) for word in options),
        # Running requests get their grace period, and vLLM some time to exit.
        "stop_seconds": int(limits.grace) + 30,
        "storage": f"{max(1, -(-size * 5 // (4 * 2**30)))}Gi" if plan.folder else "50Gi",
        "example": json.dumps({"model": [*plan.adapters, plan.name][0], "messages": messages}, ensure_ascii=False),
    }
    for template in templates.list_templates(extensions=["jinja"]):
        (folder / template.removesuffix(".jinja")).write_text(templates.get_template(template).render(values), "utf-8")
