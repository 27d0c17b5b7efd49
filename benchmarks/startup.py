"""How long `luthier train` is silent: milliseconds to its first line, and to its first optimizer step.

    python -m benchmarks.startup                        # this source
    python -m benchmarks.startup --against OTHER/src    # alternating with another copy of the source

Every run is a new process and a new folder; the data are tokenized each time. Medians, with the least and the most: of the
time that passed, and of the processor's time, which other work on the machine does not lengthen.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["train", "--data", "builtin:reviews", "--model", "builtin", "--method", "lora"]
WORDS += ["train.steps=1", "train.log_every=1", "evaluate.before=false", "evaluate.generate=0", "evaluate.rows=1"]
MARKS = {"first line": "luthier train", "first step": "  step 1/1"}


def measure(source: Path, mark: str) -> tuple[float, float]:
    """(wall, processor) milliseconds from the start of the process to the line that begins with `mark`."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "luthier", *WORDS, f"run={folder}/run"]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(mark):
                wall = time.perf_counter() - began
                process.kill()
                used = os.wait4(process.pid, 0)[2]
                process.returncode = 0
                return 1000 * wall, 1000 * (used.ru_utime + used.ru_stime)
    raise SystemExit(f"no line begins with {mark!r} with {source}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="src folder of another copy, measured in turn with this one")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    sources = {"this source": ROOT / "src"} | ({"the other": options.against.resolve()} if options.against else {})
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(options.times):
        for mark, begins in MARKS.items():
            for name, source in sources.items():
                found.setdefault((mark, name), []).append(measure(source, begins))
    print(f"{'':<26}{'passed, ms':>26}{'processor, ms':>26}")
    for (mark, name), pairs in found.items():
        columns = [sorted(values) for values in zip(*pairs, strict=True)]
        cells = [f"{statistics.median(v):,.0f} ({v[0]:,.0f} to {v[-1]:,.0f})" for v in columns]
        print(f"{mark + ', ' + name:<26}{cells[0]:>26}{cells[1]:>26}")


if __name__ == "__main__":
    main()
