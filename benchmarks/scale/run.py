"""Several processes of one run: their speed, what each holds, and what they send.

    python -m benchmarks.scale.run speed --rounds 5    # 2 ranks x 1 thread beside 1 rank x 2 threads, in alternation
    python -m benchmarks.scale.run memory              # bytes of weights, gradients and optimizer on each rank
    sudo python -m benchmarks.scale.run traffic        # bytes over a loopback of its own (unshare --net, iproute2)

`speed` trains the embedded base and takes tokens/s of steps 20 to 60; it wants an idle machine with two processors. `memory`
and `traffic` train a decoder of 25 million parameters with random weights, so that weights outweigh everything else; their
numbers do not depend on other work. Each prints its table; a ratio is that of one round, with its spread over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

STEPS, FIRST = 60, 20
SHORT, SETTLED = 9, 4
"""Steps of a run for memory and traffic, and the step after which traffic is counted."""
METHODS = {"lora": ["method=lora", "method.dropout=0"], "full": ["method=full"]}


def luthier(processes: int, overrides: list[str], threads: int, **more: str) -> None:
    words = [sys.executable, "-m", "benchmarks.scale.run", "work", f"train.processes={processes}", *overrides]
    if processes > 1:
        torchrun = [
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(processes),
            "-m",
            "benchmarks.scale.run",
            "work",
        ]
        words = [sys.executable, *torchrun, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **more}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-3000:]}")


def sent() -> int:
    """Bytes that went over the loopback of this network namespace, headers counted."""
    line = next(each for each in Path("/proc/self/net/dev").read_text().splitlines() if each.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def work(overrides: list[str]) -> None:
    """One rank, which notes after each step what it holds and what the machine has sent."""
    import torch

    from luthier.pipeline.train import train
    from luthier.recipe.config import RunConfig
    from luthier.training.step import Loop

    out, rank = os.environ.get("SCALE_OUT"), os.environ.get("RANK", "0")
    take = Loop.take

    def local(tensor: Any) -> int:
        return int(getattr(tensor, "to_local", lambda: tensor)().nbytes)

    def noted(self: Loop, index: int, **more: Any) -> bool:
        parameters = list(self.model.parameters())
        gradients = sum(local(each.grad) for each in parameters if each.grad is not None)
        taken = take(self, index, **more)
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        line = {
            "weights": sum(map(local, parameters)),
            "gradients": gradients,
            "optimizer": sum(local(each) for each in states if isinstance(each, torch.Tensor)),
            "blocks": sum(each.numel() for name, each in self.model.named_parameters() if ".layers." in name),
            "trained": sum(each.numel() for each in parameters if each.requires_grad),
            "sent": sent(),
        }
        with Path(str(out), f"{rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return taken

    if out:
        Loop.take = noted  # type: ignore[method-assign]
    train(RunConfig.load(None, overrides))


def speed(rounds: int) -> None:
    arms = {"1 rank x 2 threads": (1, 2), "2 ranks x 1 thread": (2, 1)}
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name, (processes, threads) in list(arms.items())[:: 1 if number % 2 else -1]:
            with tempfile.TemporaryDirectory() as place:
                overrides = ["model=builtin", "data=builtin:reviews", f"train.steps={STEPS}", f"run={place}/run"]
                overrides += [
                    "evaluate.before=false",
                    "evaluate.rows=2",
                    "evaluate.generate=0",
                    "train.evaluate_every=1e6",
                ]
                luthier(processes, overrides, threads)
                lines = [json.loads(line) for line in Path(place, "run", "metrics.jsonl").read_text().splitlines()]
                steps = [line for line in lines if "loss" in line][FIRST:]
                found[name].append(sum(line["tokens"] for line in steps) / sum(line["seconds"] for line in steps))
                print(f"round {number + 1}: {name}: {found[name][-1]:,.0f} tokens/s", flush=True)
    one, two = found.values()
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    spread = f" ± {stdev(ratios):.2f}" if rounds > 1 else ""
    print(f"2 ranks x 1 thread over 1 rank x 2 threads: {mean(ratios):.2f}{spread} ({rounds} rounds)")


def base(place: str) -> str:
    """A folder with a decoder of 25 million parameters: config.json and the embedded base's tokenizer."""
    import shutil

    from luthier.builtin import BASE

    folder = Path(place, "base")
    shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    config |= {"num_key_value_heads": 8, "head_dim": 64, "layer_types": ["full_attention"] * 8}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def held(name: str, world: int, parallel: str) -> list[list[dict[str, Any]]]:
    """The notes of each rank of a short run."""
    with tempfile.TemporaryDirectory() as place:
        overrides = [f"model={base(place)}", "model.init=random", "data=builtin:reviews", f"train.steps={SHORT}"]
        overrides += [*METHODS[name], f"run={place}/run", "data.validation=none", f"train.parallel={parallel}"]
        overrides += ["train.micro_batch=16", "train.packing=false"]  # one pass a step
        luthier(world, overrides, 1, SCALE_OUT=place)
        return [
            [json.loads(line) for line in Path(place, f"{rank}.jsonl").read_text().splitlines()]
            for rank in range(world)
        ]


def memory() -> None:
    print("| method | ranks | weights | gradients | optimizer | all of the largest rank | x ranks / one rank |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in METHODS:
        whole = 0.0
        for world in (1, 2, 3, 4):
            ranks = [lines[-1] for lines in held(name, world, "fsdp")]
            parts = {key: max(line[key] for line in ranks) for key in ("weights", "gradients", "optimizer")}
            most = max(sum(line[key] for key in parts) for line in ranks)
            whole = whole or most
            cells = [f"{size / 1e6:.2f} MB" for size in (*parts.values(), most)]
            print(f"| {name} | {world} | {' | '.join(cells)} | {most * world / whole:.3f} |", flush=True)


def traffic() -> None:
    if os.environ.get("SCALE_ALONE") != "1":
        inner = f"ip link set lo up && SCALE_ALONE=1 exec {sys.executable} -m benchmarks.scale.run traffic"
        raise SystemExit(subprocess.run(["unshare", "--net", "sh", "-c", inner], check=False).returncode)
    print("| method | parallel | ranks | sent in a step, all ranks | formula | measured / formula |")
    print("|---|---|---:|---:|---:|---:|")
    for name, parallel in (("lora", "ddp"), ("full", "ddp"), ("full", "fsdp")):
        for world in (2, 3, 4):
            lines = held(name, world, parallel)[0]
            moved = (lines[-1]["sent"] - lines[SETTLED]["sent"]) / (len(lines) - 1 - SETTLED)
            trained, blocks = lines[0]["trained"], lines[0]["blocks"]
            # A layer is gathered for the forward and the backward pass, what is outside of layers once.
            numbers = 2 * trained if parallel == "ddp" else 2 * blocks + (trained - blocks) + trained
            formula = 4 * (world - 1) * numbers
            print(
                f"| {name} | {parallel} | {world} | {moved / 1e6:.2f} MB | {formula / 1e6:.2f} MB | {moved / formula:.2f} |",
                flush=True,
            )


def main() -> None:
    if sys.argv[1:2] == ["work"]:
        work([word for word in sys.argv[2:] if not word.startswith("train.processes")])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "traffic"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    {"speed": lambda: speed(options.rounds), "memory": memory, "traffic": traffic}[options.what]()


if __name__ == "__main__":
    main()
