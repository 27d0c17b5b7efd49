"""`luthier serve --engine vllm`: start vLLM, or write the files that start it elsewhere."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from luthier.core.errors import InputError, MissingExtra
from luthier.core.events import Progress
from luthier.core.shell import shell_line
from luthier.recipe.consent import Allow
from luthier.serving.http.settings import ServerAddress, ServerLimits
from luthier.serving.vllm.command import GUARD, PLUGIN, VERSION, arguments, plan_of, vllm_environment


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
        from luthier.serving.vllm.files import write_files

        write_files(plan, limits, dtype, write, progress)
        return
    program = find_vllm(vllm)
    address.check()
    with address.bind() as free:  # a free port if it is 0
        port: int = free.getsockname()[1]
    tokenizer = str(plan.tokenizer) if plan.tokenizer else None
    adapters = {name: str(path) for name, path in plan.adapters.items()}
    options = arguments(plan, limits, dtype, tokenizer=tokenizer, adapters=adapters)
    where = ["--host", address.host, "--port", str(port)]
    words = [program, "serve", str(plan.folder or plan.base.path), *options, *where]
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
    raise MissingExtra(
        "vLLM is not installed; it pins its own version of torch and needs a separate environment",
        fix=f"python -m venv vllm && vllm/bin/pip install vllm=={VERSION}, then --vllm vllm/bin/vllm; "
        "or --write DIR, which writes all that another machine needs",
    )
