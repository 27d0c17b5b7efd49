r"""How much of its speed a run keeps while the processors have other work.

    python -m benchmarks.training.busy --rounds 5 --seconds 8                      # the embedded base
    python -m benchmarks.training.busy --model smollm2.gguf --rounds 5 --seconds 12

Two runs as Luthier sets them up and two as PyTorch does ("awake": OpenMP's idle workers never sleep early) are started,
take steps without end, and are stopped (SIGSTOP) where it is not their turn. So they alternate within seconds: each alone,
beside the other run of its kind, and beside a busy loop for each processor. Other work on the machine is measured as
well: the processors that neither runs nor loops had. A window in which that is more than `--quiet` of one processor does
not count, unless other work is meant to be there (`--quiet 99`).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from luthier.kernels import process

ROWS, PASS = 64, {"builtin": 512}
"""Rows of a run, and tokens of a step, which is one forward and backward pass; 128 with other models."""
SETTLE = process.WATCH_SECONDS * (process.CALM_LOOKS + 2)
"""Seconds of a window that do not count: until a run has noticed that others came or went."""
SPIN = "import os\nos.write(1, b'.')\nwhile True: pass"
TICK = os.sysconf("SC_CLK_TCK")


def run_steps(model: str, kind: str) -> None:
    """Take steps until the process is ended; writes time and tokens of each to standard output."""
    import luthier

    if kind == "awake":
        process.WAITED_SHARE = 2.0  # nothing is that busy

    text = "The museum closes at six, yet the guards begin to shepherd visitors towards the stairs at half past five. "
    rows = [{"instruction": f"Continue story {number}.", "output": text * 2} for number in range(ROWS)]
    options = {"epochs": 1, "batch_size": 8, "lr": 1e-6, "precision": "fp32"}
    with luthier.prepare(model=model, method="lora", data={"path": rows, "validation": "none"}, train=options) as ready:
        step = [
            row for row, _ in zip(ready.rows, range(PASS.get(model, 128) // len(ready.rows[0].ids) or 1), strict=False)
        ]
        while True:
            tokens = ready.gradient(step).tokens
            ready.take()
            print(time.monotonic(), tokens, flush=True)


@dataclass
class Work:
    """A process that is stopped where it is not its turn."""

    process: subprocess.Popen[bytes]
    log: Path

    def turn(self, on: bool) -> None:
        self.process.send_signal(signal.SIGCONT if on else signal.SIGSTOP)

    def used(self) -> float:
        """Processor seconds so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def speed(self, begin: float, end: float) -> float:
        """Tokens per second of the steps that lie within these moments."""
        lines = [line.split() for line in self.log.read_text(encoding="utf-8").splitlines()]
        steps = [(float(at), int(tokens)) for at, tokens in lines if begin <= float(at) <= end]
        if len(steps) < 3:
            return float("nan")
        return sum(tokens for _, tokens in steps[1:]) / (steps[-1][0] - steps[0][0])


def start(command: list[str], environment: dict[str, str], log: Path) -> Work:
    """Start a process and stop it once it works."""
    with log.open("wb") as out:
        work = Work(subprocess.Popen(command, stdout=out, env=environment), log)
    while (log.stat().st_size < 100 and command[-1] != SPIN) or not log.stat().st_size:
        if work.process.poll() is not None:
            raise SystemExit(f"{' '.join(command)}: exit code {work.process.returncode}")
        time.sleep(0.1)
    work.turn(False)
    return work


def busy_seconds() -> float:
    """Processor seconds of all processes of the machine so far, and those that its host took."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text("utf-8").split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICK


@dataclass
class Window:
    speed: float
    """Tokens per second, of all runs together."""
    had: float
    """Processors that the runs had."""
    others: float
    """Processors that other work had."""
    counts: bool = field(default=True)


def window(runs: list[Work], loops: list[Work], seconds: float, quiet: float) -> Window:
    """Let these processes work for some seconds."""
    for each in (*runs, *loops):
        each.turn(True)
    time.sleep(SETTLE)
    begin, before = time.monotonic(), busy_seconds()
    used = [each.used() for each in (*runs, *loops)]
    time.sleep(seconds)
    end, after = time.monotonic(), busy_seconds()
    used = [each.used() - one for each, one in zip((*runs, *loops), used, strict=True)]
    for each in (*runs, *loops):
        each.turn(False)
    others = (after - before - sum(used)) / (end - begin)
    had = sum(used[: len(runs)]) / (end - begin)
    return Window(sum(each.speed(begin, end) for each in runs), had, others, others <= quiet)


def shown(values: list[float], form: str) -> str:
    spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{median(values):{form}}{spread}" if values else "-"


def table(found: dict[tuple[str, str], list[Window]]) -> None:
    print("\n| | workers | tokens/s, all runs | of quiet speed, each run | luthier over awake | processors | windows |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for (scene, kind), windows in found.items():
        good = [each for each in windows if each.counts]
        quiet = [each.speed for each in found["alone", "luthier"] if each.counts]
        share = [each.speed / (2 if scene == "a second run" else 1) / median(quiet) for each in good if quiet]
        pairs = zip(found[scene, "luthier"], found[scene, "awake"], strict=True)
        ratios = [one.speed / other.speed for one, other in pairs if one.counts and other.counts]
        print(
            f"| {scene} | {kind} | {shown([each.speed for each in good], ',.0f')} | {shown(share, '.2f')} "
            f"| {shown(ratios, '.2f') if kind == 'asleep' else ''} | {shown([each.had for each in good], '.2f')} "
            f"| {len(good)} of {len(windows)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a window")
    parser.add_argument("--quiet", type=float, default=0.1, help="processors that other work may have in a window")
    parser.add_argument("--steps", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.steps:
        run_steps(given.model, given.steps)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "MKL_"))}
    kinds = ("luthier", "awake")
    command = [sys.executable, "-m", "benchmarks.training.busy", "--model", given.model, "--steps"]
    works: list[Work] = []
    with tempfile.TemporaryDirectory() as place:
        try:
            runs: dict[str, list[Work]] = {}
            for kind in kinds:
                runs[kind] = []
                for number in range(2):
                    works.append(start([*command, kind], clean, Path(place, f"{kind}{number}")))
                    runs[kind].append(works[-1])
            loops = []
            for number in range(os.cpu_count() or 1):
                works.append(start([sys.executable, "-c", SPIN], clean, Path(place, f"loop{number}")))
                loops.append(works[-1])
            scenes = {"alone": (1, 0), "a second run": (2, 0), "a busy loop for each processor": (1, len(loops))}
            found: dict[tuple[str, str], list[Window]] = {(scene, kind): [] for scene in scenes for kind in kinds}
            for turn in range(given.rounds):
                for scene, (count, beside) in scenes.items():
                    for kind in kinds[:: 1 if turn % 2 == 0 else -1]:
                        made = window(runs[kind][:count], loops[:beside], given.seconds, given.quiet)
                        found[scene, kind].append(made)
                        print(
                            f"round {turn + 1}: {scene}, {kind}: {made.speed:,.0f} tokens/s, {made.had:.2f} processors, "
                            f"others {made.others:.2f}",
                            flush=True,
                        )
            table(found)
        finally:
            for each in works:
                each.process.kill()
                each.process.wait()


if __name__ == "__main__":
    main()
