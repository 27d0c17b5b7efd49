"""The quick tests with the lowest versions that pyproject.toml allows, and with the newest that a registry has.

    python tools/versions.py lowest        or: newest; both: make test-versions

Each makes a virtual environment of its own in a temporary folder and deletes it (--keep FOLDER keeps it and uses it
again). torch stays where constraints.txt pins it, for another build may bring gigabytes of CUDA: --torch 2.14.1 takes
another one. What has passed here is what the bounds in pyproject.toml say.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("quantize", "languages", "scores", "torchao", "serve")
"""Extras that install everywhere in a minute; the others are compiled or large."""
TESTERS = ("pytest", "pytest-xdist", "hypothesis", "openai")
QUICK = (
    "tests/cli/test_cli.py",
    "tests/recipe/test_config.py",
    "tests/data/test_formats.py",
    "tests/training/test_checkpoint.py",
    "tests/planning/test_planning.py",
    "tests/reports/test_report.py",
    "tests/strangers",
    "tests/methods/test_promises.py",
    "tests/serving/test_server.py",
    "tests/serving/test_command.py",
)
"""A few minutes: the command line, recipes, data, checkpoints, pages, every method on one architecture, the server."""
LEFT_OUT = "test_promises and not llama"


def bounds(project: dict[str, object]) -> list[str]:
    """Requirements of Luthier and of `EXTRAS`."""
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict) and isinstance(project["dependencies"], list)
    return [*project["dependencies"], *(each for extra in EXTRAS for each in extras[extra])]


def lowest(requirement: str) -> str:
    """`name==2.8` of `name>=2.8,<3`. pip has no resolver for the lowest versions; constraints do it."""
    found = re.fullmatch(r"([\w-]+)>=([\w.]+)(,<[\w.]+)?", requirement)
    if found is None:
        raise SystemExit(f"pyproject.toml: {requirement!r} names no lowest version: write name>=VERSION")
    return f"{found[1]}=={found[2]}"


def torch_of_constraints() -> str:
    """The version of torch that everything is tested with."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith("torch=="))


def install(folder: Path, which: str, torch: str) -> Path:
    """The Python of an environment in `folder` with Luthier and what its quick tests need."""
    python = folder / "bin" / "python"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [lowest(each) for each in bounds(project) if not each.startswith("torch>")] if which == "lowest" else []
    if not python.exists():
        venv.create(folder, with_pip=True)
    constraints = folder / "versions.txt"
    constraints.write_text("\n".join([f"torch=={torch}", *pins]) + "\n", encoding="utf-8")
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--progress-bar",
        "off",
        "--disable-pip-version-check",
        "--constraint",
        constraints,
    ]
    # torch first and alone, as the Makefile does it.
    subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, "--upgrade", "--editable", f"{ROOT}[{','.join(EXTRAS)}]", *TESTERS], check=True)
    return python


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("which", choices=("lowest", "newest"))
    said.add_argument("--torch", default=torch_of_constraints(), help="another version than constraints.txt pins")
    said.add_argument("--keep", type=Path, help="folder of the environment, kept and used again")
    said.add_argument("tests", nargs="*", help="instead of the quick ones, and options of pytest behind --")
    given = said.parse_args()
    with tempfile.TemporaryDirectory(prefix="luthier-versions-") as temporary:
        python = install((given.keep or Path(temporary)).resolve(), given.which, given.torch)
        subprocess.run([python, "-m", "pip", "list", "--disable-pip-version-check"], check=True)
        tests = given.tests or [*QUICK, "-k", f"not ({LEFT_OUT})", "-n", "auto"]
        done = subprocess.run(
            [python, "-m", "pytest", *tests], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
