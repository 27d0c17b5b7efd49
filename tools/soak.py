"""Kill training runs at random moments, start them again, and compare them with runs that were never stopped.

    python tools/soak.py                # 200 kills
    python tools/soak.py --kills 5      # what the tests do

Each trial is a process of its own with its own run folder, forked from this one so that libraries are loaded once. It is
killed by SIGKILL up to five times, in one of two ways: after a random time, or just before a random one of its file
operations (half of those are among the ones that write checkpoints). Then it is left to finish. Weights, metrics.jsonl,
result.json (all but measured times), data.json and every checkpoint must be those of the reference, byte for byte, and
nothing half-written may be left. Prints what was done; exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

COMMON = [
    "train.lr=2e-2",
    "train.batch_size=4",
    "train.micro_batch=2",
    "train.steps=8",
    "train.save_every=1",
    "train.keep=2",
    "train.evaluate_every=3",
    "evaluate.generate=0",
    "data.cache=false",
    "data.workers=1",
    "train.packing=false",
]
CASES = {
    "lora, dropout, packing": ["method.rank=2", "method.dropout=0.1", "train.packing=true", "train.micro_tokens=128"],
    "full": ["method=full", "train.lr=1e-3"],
    "adalora": ["method=adalora", "method.rank=4", "method.target_rank=2"],
    "lora, streaming": ["method.rank=2", "data.streaming=true", "data.shuffle_buffer=8", "data.validation=none"],
}
MEASURED = {"run", "finished", "train_seconds", "tokens_per_second", "next", "memory", "time"}
"""What in result.json belongs to the process that wrote it."""
OF_THE_PROCESS = {"seconds", "time", "memory"}
"""The same in a line of metrics.jsonl."""
WRITES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
"""Audit events of Python before which a process may be killed; reading counts too."""
MOST_KILLS = 5


class Soak:
    """One model, one data set, a reference for each case, and trials beside them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.operations: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)  # what killed processes leave there goes with the folder
        self._prepare()

    def _prepare(self) -> None:
        import torch
        from tests.conftest import alpaca_rows, build_tokenizer, model_config, write_jsonl
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        torch.set_num_threads(1)  # a pool of threads would not survive the fork
        disable_progress_bar()
        torch.manual_seed(1)
        config = model_config("llama")
        config.attention_dropout = 0.1
        AutoModelForCausalLM.from_config(config).save_pretrained(self.folder / "model")
        build_tokenizer().save_pretrained(self.folder / "model")
        write_jsonl(self.folder / "rows.jsonl", alpaca_rows(24))

    def train(self, case: str, run: Path) -> None:
        from luthier.pipeline.train import train
        from luthier.recipe.config import RunConfig

        own = [f"model={self.folder / 'model'}", f"data={self.folder / 'rows.jsonl'}", f"run={run}"]
        train(RunConfig.load(None, [*COMMON, *own, *CASES[case]]))

    def reference(self, case: str) -> None:
        """The first run of a case warms this process up, a second one, forked, counts its file operations."""
        if not self.operations:
            self.train(case, self.folder / "warm")
        run, listing = self._run("reference", case), self.folder / "operations.json"
        seen: list[str] = []

        def listen() -> None:
            on_file_operation(run, lambda path: seen.append(path) or listing.write_text(json.dumps(seen)))

        began = time.perf_counter()
        self._finish(self._fork(case, run, listen), run)
        self.seconds[case] = time.perf_counter() - began
        self.operations[case] = json.loads(listing.read_text())

    def _run(self, kind: str, case: str) -> Path:
        return self.folder / f"{kind}-{list(CASES).index(case)}"

    def trial(self, case: str, number: int) -> list[str]:
        """One run, killed a few times; returns how it differs from the reference in the end."""
        run = self.folder / f"trial-{number}"
        for _ in range(self.rng.randint(1, MOST_KILLS)):
            after, operation = None, None
            if self.rng.random() < 0.5:
                after = self.rng.uniform(0, self.seconds[case])
            else:
                operation = self._operation(case)
            pid = self._fork(case, run, lambda at=operation: die_at(run, at) if at is not None else None)
            if after is not None:
                time.sleep(after)
                os.kill(pid, signal.SIGKILL)
            if not self._died(pid, run):
                break
            self.counts["kills"] += 1
            self.counts["after a random time" if after is not None else "before a file operation"] += 1
            self.counts["in the write of a checkpoint"] += bool(list(run.glob("checkpoints/.staging-*")))
            self.counts["before the first checkpoint"] += not list(run.glob("checkpoints/step-*"))
            self.counts["behind the last step"] += bool(list(run.glob("checkpoints/step-000008")))
        self._finish(self._fork(case, run), run)
        found = differences(self._run("reference", case), run)
        if not found:
            shutil.rmtree(run)
        return found

    def _operation(self, case: str) -> int:
        paths = self.operations[case]
        saving = [number for number, path in enumerate(paths) if "/checkpoints/" in path]
        return self.rng.choice(saving) if self.rng.random() < 0.5 else self.rng.randrange(len(paths))

    def _fork(self, case: str, run: Path, prepare: Callable[[], None] = lambda: None) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            log = os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            prepare()
            self.train(case, run)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)

    def _died(self, pid: int, run: Path) -> bool:
        """Was the process killed? False where it had finished before. RuntimeError where it failed."""
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return True
        if status:
            raise RuntimeError(f"{run} failed:\n{run.with_suffix('.log').read_text()}")
        return False

    def _finish(self, pid: int, run: Path) -> None:
        if self._died(pid, run):
            raise RuntimeError(f"{run} was killed by somebody else; out of memory?")


def on_file_operation(run: Path, call: Callable[[str], object]) -> None:
    """Call with the path before every file operation in `run`. For this process there is no way back."""
    inside = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal inside
        if event in WRITES and not inside and str(arguments[0]).startswith(str(run)):
            inside = True  # `call` may write files itself
            call(str(arguments[0]))
            inside = False

    sys.addaudithook(hook)


def die_at(run: Path, number: int) -> None:
    """Kill this process just before its file operation `number` in `run`."""
    left = [number]

    def count(path: str) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    on_file_operation(run, count)


def content(run: Path) -> dict[str, Any]:
    """All of a run that must not depend on whether it was stopped."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = path.relative_to(run).as_posix()
        if name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in line.items() if key not in OF_THE_PROCESS} for line in lines]
        elif name == "result.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key not in MEASURED}
        elif (
            name == "plan.json"
        ):  # what was planned hangs on the memory and speed of the moment; what was decided must not
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "plan"}
        elif path.name == "state.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
        elif path.name == "manifest.json":
            files = json.loads(path.read_text())["files"]
            found[name] = {key: entry for key, entry in files.items() if key != "state.json"}
        elif name not in ("run.json", "recipe.yaml", "report.html", "loss.png"):  # they name the run or its folder
            found[name] = path.read_bytes()
    return found


def differences(reference: Path, run: Path) -> list[str]:
    """What of a run is not as in the reference."""
    one, other = content(reference), content(run)
    return [f"{run.name}: {name}" for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    wanted = options.parse_args()
    began, found, number = time.perf_counter(), [], 0
    with tempfile.TemporaryDirectory(prefix="luthier-soak-") as folder:
        soak = Soak(Path(folder), wanted.seed)
        for case in CASES:
            soak.reference(case)
            print(f"{case}: {len(soak.operations[case])} file operations in {soak.seconds[case]:.1f} s", flush=True)
        while soak.counts["kills"] < wanted.kills:
            case = list(CASES)[number % len(CASES)]
            found += soak.trial(case, number)
            number += 1
            if number % 20 == 0:
                print(f"{soak.counts['kills']} kills in {number} runs, {len(found)} differences so far", flush=True)
    for what, count in soak.counts.items():
        print(f"{what}: {count}")
    print(f"runs: {number}, different from the reference: {len({name.split(':')[0] for name in found})}")
    print("\n".join(found), end="\n" if found else "")
    print(f"{time.perf_counter() - began:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
