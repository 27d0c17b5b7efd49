"""Where a run comes from: command, versions, machine and base weights, and whether they are still the same."""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.core.shell import public, redacted_command

PACKAGES = (
    *("luthier", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "datasets"),
    "bitsandbytes",  # what a quantized base computes depends on it
)
SAMPLE = 4096
"""Bytes looked at on either end of each tensor of the base."""


@cache
def _version(package: str) -> str:
    """The installed version, read once in a process: it is a file of its own for each package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, Any]:
    """Versions, machine and command of this process; no user names, keys or tokens."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "command": [Path(sys.argv[0]).name, *map(public, redacted_command(sys.argv[1:]))],
    }


def changes(before: Mapping[str, Any]) -> list[str]:
    """What of the environment is not as it was: `torch 2.12.0 at the start, 2.13.0 now`."""
    now = environment()
    pairs = [(name, before.get(name), now[name]) for name in ("python", "system")]
    versions = before.get("packages") or {}
    pairs += [(name, versions.get(name), version) for name, version in now["packages"].items()]
    return [f"{name} {then} at the start, {here} now" for name, then, here in pairs if then not in (None, here)]


def base_hashes(folder: Path, *, weights: bool = True) -> dict[str, str]:
    """A hash for each file of a base that a run depends on: tokenizer, configuration, code, weights.

    Of weights the header is hashed and both ends of each tensor, for reading all of them would take as long as loading
    them once more. Training changes every tensor it touches, so another checkpoint does not pass for the same.
    """
    shards = {*folder.glob("*.safetensors"), *_listed(folder)} if weights else set()
    found = {path.relative_to(folder).as_posix(): _sampled(path) for path in sorted(shards)}
    for path in sorted(folder.iterdir()):
        read = path.suffix in (".json", ".jinja", ".py", ".model") or path.name in ("vocab.txt", "merges.txt")
        if read and path.name != "generation_config.json":
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _listed(folder: Path) -> list[Path]:
    """The shards that the index of a folder names, which may lie in folders within."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        names = [name for name in {*index["weight_map"].values()} if ".." not in Path(name).parts]
        return [file for name in names if (file := folder / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # loading it will say what is wrong
        return []


def local_copy(source: str, revision: str | None) -> Path | None:
    """The folder that a loaded model came from: its own, or the hub's snapshot in the cache."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _sampled(path: Path) -> str:
    """Hash of size, header and samples of a safetensors file."""
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, 2**28))
        digest.update(header)
        try:
            places = [entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError):  # loading it will say what is wrong
            return digest.hexdigest()
        for begin, end in places:
            for place in (begin, max(begin, end - SAMPLE)):
                file.seek(8 + length + place)
                digest.update(file.read(min(SAMPLE, end - place)))
    return digest.hexdigest()
