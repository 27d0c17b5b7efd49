"""run.json: which run a folder is, and hashes of the files that decide what comes of it.

A hash here is no signature. It finds a file that was edited, cut short, or swapped with another run's; it does not stop
anyone who also edits run.json. A folder from before there was a run.json is taken as it is.
"""

import secrets
from pathlib import Path
from typing import Any

from luthier.core.errors import InputError
from luthier.core.files import put, read_object, sha256, staging_of, write_json
from luthier.core.resources import no_access


class Ledger:
    """The run.json of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, recipe: dict[str, Any]) -> None:
        """Give the folder the identity of a new run with this recipe."""
        write_json(self.path, {"run": secrets.token_hex(16), "recipe": recipe, "files": {}})

    def read(self) -> dict[str, Any]:
        """{"run", "recipe", "files"}; run is "" where the folder has no run.json."""
        if not self.path.is_file():
            return {"run": "", "recipe": None, "files": {}}
        found = read_object(self.path, "restore it from a copy, or delete it: then nothing is known of edited files")
        if [type(found[key]) for key in ("run", "recipe", "files")] != [str, dict, dict]:
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
            write_json(self.path, {**entries, "files": {**entries["files"], path.name: hashes}})
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
