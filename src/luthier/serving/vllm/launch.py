"""`luthier serve --engine vllm`: finds vLLM, starts it, or writes the files that start it elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from luthier.core.errors import InputError, MissingExtra
from luthier.core.events import Progress
from luthier.core.shell import command
from luthier.recipe.consent import Allow
from luthier.serving.settings import Place, Sizes
from luthier.serving.vllm.command import GUARD, PLUGIN, VERSION, arguments, environment, plan_of


def serve(
    given: Sequence[str],
    place: Place,
    sizes: Sizes,
    *,
    dtype: str,
    vllm: str | None,
    write: Path | None,
    progress: Progress,
    allow_code: Allow = False,
) -> None:
    """Become vLLM, or write all that another machine needs to start it. What cannot work is said before that."""
    for option, held, usual in (
        ("--max-waiting", sizes.waiting, Sizes().waiting),
        ("--max-body", sizes.body, Sizes().body),
    ):
        if held != usual:
            raise InputError(f"{option} says nothing to vLLM", fix="leave it out, or --engine luthier")
    plan = plan_of(given, allow_code)
    if write is not None:
        from luthier.serving.vllm.files import write as write_files

        write_files(plan, sizes, dtype, write, progress)
        return
    program = find(vllm)
    place.check()
    port = place.port or _free(place)
    words = [
        program,
        "serve",
        str(plan.folder or plan.base.path),
        *arguments(
            plan,
            sizes,
            dtype,
            tokenizer=str(plan.tokenizer) if plan.tokenizer else None,
            adapters={name: str(path) for name, path in plan.adapters.items()},
        ),
        "--host",
        place.host,
        "--port",
        str(port),
    ]
    if plan.base.quantize == "nf4":
        progress.note(f"a base in 4 bit: vLLM needs vllm-bnb-plugin for it (pip install vllm-bnb-plugin=={PLUGIN})")
    progress.stage(command(*words))
    inherited = {name: value for name, value in os.environ.items() if name != "LUTHIER_API_KEY"}
    path = os.pathsep.join(filter(None, (str(GUARD), inherited.get("PYTHONPATH"))))
    sys.stdout.flush()
    os.execve(program, words, inherited | environment(plan, place.key) | {"PYTHONPATH": path})


def find(vllm: str | None) -> str:
    """The program; MissingExtra, which says how to come by it, where there is none."""
    found = shutil.which(Path(vllm).expanduser() if vllm else "vllm")
    if found:
        return str(Path(found).absolute())
    if vllm:
        raise InputError(f"--vllm {vllm} is no program", fix="give the path of vllm in its environment's bin folder")
    raise MissingExtra(
        "vLLM is not installed here; it pins a torch of its own and needs an environment for itself",
        fix=f"python -m venv vllm && vllm/bin/pip install vllm=={VERSION}, then --vllm vllm/bin/vllm; "
        "or --write DIR, which writes all that another machine needs",
    )


def _free(place: Place) -> int:
    made = place.bound()
    port: int = made.getsockname()[1]
    made.close()
    return port
