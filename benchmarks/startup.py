"""How long `luthier train` is silent: milliseconds to its first line, and to its first optimizer step.

    python -m benchmarks.startup                        # this source
    python -m benchmarks.startup --against OTHER/src    # alternating with another copy of the source

Every run is a new process and a new folder; the data are tokenized each time. Medians, with the least and the most.
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


def measure(source: Path) -> tuple[float, float]:
    """Milliseconds from the start of the process to the first line, and to the line of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONUNBUFFERED": "", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "luthier", *WORDS, f"run={folder}/run"]
        began, first = time.perf_counter(), 0.0
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder)
        assert process.stdout is not None
        for line in process.stdout:
            now = 1000 * (time.perf_counter() - began)
            first = first or now
            if line.startswith("  step 1/1"):
                process.kill()
                process.wait()
                return first, now
    raise SystemExit(f"no step was taken with {source}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="src folder of another copy, measured in turn with this one")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    sources = {"this source": ROOT / "src"} | ({"the other": options.against.resolve()} if options.against else {})
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for _ in range(options.times):
        for name, source in sources.items():
            found[name].append(measure(source))
    print(f"{'':<14}{'first line, ms':>24}{'first step, ms':>26}")
    for name, pairs in found.items():
        columns = [sorted(values) for values in zip(*pairs, strict=True)]
        cells = [f"{statistics.median(v):,.0f} ({v[0]:,.0f} to {v[-1]:,.0f})" for v in columns]
        print(f"{name:<14}{cells[0]:>24}{cells[1]:>26}")


if __name__ == "__main__":
    main()
