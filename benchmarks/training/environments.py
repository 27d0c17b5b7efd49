"""One environment for each program beside Luthier, with the versions in requirements/, under build/benchmarks.

    python -m benchmarks.training.environments                  # all that this machine can use
    python -m benchmarks.training.environments trl

An environment of other versions than those listed now counts as absent.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1] / "build" / "benchmarks"
NAMES = {"trl": False, "llamafactory": False, "unsloth": True}
"""And whether it needs CUDA."""


def listed(name: str) -> Path:
    return HERE / "requirements" / f"{name}.txt"


def python_of(name: str | None) -> Path | None:
    """Its interpreter; none where the environment is not there or not of the versions listed now."""
    if name is None:
        return Path(sys.executable)
    mark = ROOT / name / "made-of.txt"
    return ROOT / name / "bin" / "python" if mark.is_file() and mark.read_text() == listed(name).read_text() else None


def make(name: str) -> None:
    where = ROOT / name
    shutil.rmtree(where, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", where], check=True)
    install = [where / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch alone with what it needs, which differs between its builds; the rest is listed in full.
    torch = next(line for line in listed(name).read_text().splitlines() if line.startswith("torch=="))
    subprocess.run([*install, torch], check=True)
    subprocess.run([*install, "--no-deps", "--requirement", listed(name)], check=True)
    (where / "made-of.txt").write_text(listed(name).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], default=[])
    given = parser.parse_args()
    import torch

    for name in given.names or [name for name, cuda in NAMES.items() if not cuda or torch.cuda.is_available()]:
        if python_of(name):
            print(f"{name} is there")
            continue
        print(f"making {ROOT / name} ...", flush=True)
        make(name)


if __name__ == "__main__":
    main()
