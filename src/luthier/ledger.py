"""run.json: which run a folder is, and hashes of the files that decide what comes of it.

A hash here is no signature. It finds a file that was edited, cut short, or swapped with another run's; it does not stop
anyone who also edits run.json. A folder from before there was a run.json is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

from luthier.errors import InputError
from luthier.strict_json import to_json
from luthier.training.durable import put, staging_of
from luthier.training.space import no_access


class JsonObject(dict[str, Any]):
    """What stands in a JSON file; a key that is not there is an InputError that names the file."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise InputError(
            f"{self.path}: the key {key!r} is missing", mend="restore the file, or train in another folder: run=DIR"
        )


def read_object(path: Path, mend: str = "") -> JsonObject:
    """The JSON object in a file; InputError says what is wrong with it, and `mend` how to fix that."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing", mend=mend) from None
    except PermissionError as error:
        raise no_access(error) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", mend=mend) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}", mend=mend) from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, not a JSON object", mend=mend)
    return JsonObject(path, found)


class Ledger:
    """The run.json of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, recipe: dict[str, Any]) -> None:
        """Give the folder the identity of a new run with this recipe."""
        self._write({"run": secrets.token_hex(16), "recipe": recipe, "files": {}})

    def read(self) -> dict[str, Any]:
        """{"run", "recipe", "files"}; run is "" where the folder has no run.json."""
        if not self.path.is_file():
            return {"run": "", "recipe": None, "files": {}}
        found = read_object(
            self.path, mend="restore it from a copy, or delete it: then nothing is known of edited files"
        )
        if not (
            isinstance(found["run"], str) and isinstance(found["recipe"], dict) and isinstance(found["files"], dict)
        ):
            raise InputError(f"{self.path}: 'run' must be text, 'recipe' and 'files' objects")
        return found

    @property
    def run(self) -> str:
        """Identity of the run, which its checkpoints and its adapter also carry."""
        return str(self.read()["run"])

    def commit(self, path: Path) -> None:
        """Let what stands in `staging_of(path)` take its name, and keep its hash.

        The hash is kept first, beside that of the file it replaces: a kill between the two leaves either file known.
        """
        if self.path.is_file():
            entries = self.read()
            hashes = [sha256(file) for file in (staging_of(path), path) if file.is_file()]
            self._write({**entries, "files": {**entries["files"], path.name: hashes}})
        put(path)

    def fault(self, path: Path) -> str:
        """What is wrong with a file of the run; empty where it is as the run wrote it, or nothing is known of it."""
        known = self.read()["files"].get(path.name)
        if not path.is_file():
            return "is missing" if known else ""
        try:
            return "was changed after the run wrote it" if known and sha256(path) not in known else ""
        except PermissionError as error:
            raise no_access(error) from None
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    def _write(self, entries: dict[str, Any]) -> None:
        text = to_json(entries, ensure_ascii=False, indent=1) + "\n"
        staging_of(self.path).write_text(text, encoding="utf-8")
        put(self.path)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
