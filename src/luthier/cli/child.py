"""The process of a job: `luthier` with its arguments, whose exit code is left in a file for whoever asks later.

python -m luthier.cli.child CODE_FILE train recipe.yaml
"""

import os
import sys
from pathlib import Path


def run_and_note() -> None:
    """Run the command line, and write its exit code."""
    place, code = Path(sys.argv[1]), 1
    sys.argv = ["luthier", *sys.argv[2:]]
    try:
        from luthier.cli.main import main as luthier

        luthier()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        staging = place.with_suffix(f".{os.getpid()}")
        staging.write_text(str(code))
        staging.replace(place)


if __name__ == "__main__":
    run_and_note()
