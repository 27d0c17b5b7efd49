"""Several processes of one run: their speed, what each holds, and what they send.

    python -m benchmarks.scale.run speed --rounds 5    # 2 ranks x 1 thread beside 1 rank x 2 threads, in alternation
    python -m benchmarks.scale.run memory              # what each rank holds: tensors, and the process
    python -m benchmarks.scale.run trainer --rounds 3  # full weights under FSDP2 beside transformers.Trainer's FSDP2
    sudo python -m benchmarks.scale.run traffic        # bytes over a loopback of its own (unshare --net, iproute2)

`speed` trains the embedded base and takes tokens/s of steps 20 to 60; it wants an idle machine with two processors, as
`trainer` does. All but `speed` train a decoder of 28 million parameters with random weights, so that weights outweigh
everything else; bytes do not depend on other work. Each prints its table; a ratio is that of one round, with its spread over
the rounds.
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

from benchmarks.scale import trainer
from benchmarks.scale.notes import Notes

STEPS, FIRST = 60, 20
SHORT, SETTLED = 9, 4
"""Steps of a run for memory and traffic, and the step after which traffic is counted."""
METHODS = {"lora": ["method=lora", "method.dropout=0"], "full": ["method=full"]}


def luthier(processes: int, overrides: list[str], threads: int, **more: str) -> None:
    """Train in so many processes; each notes its steps where SCALE_OUT names a folder."""
    start(processes, ["benchmarks.scale.run", "work", *overrides], threads, **more)


def start(processes: int, module: list[str], threads: int, **more: str) -> str:
    """What a module prints, run with its arguments in so many processes, by torchrun where they are several."""
    torchrun = ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    words = [sys.executable, "-m", *torchrun, *module]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **more}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-3000:]}")
    return done.stdout


def sent() -> int:
    """Bytes that went over the loopback of this network namespace, headers counted."""
    line = next(each for each in Path("/proc/self/net/dev").read_text().splitlines() if each.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def work(overrides: list[str]) -> None:
    """One rank, which notes after each step what it holds and what the machine has sent."""
    from torch.distributed.tensor import DTensor

    from luthier.pipeline.train import train
    from luthier.planning import machine
    from luthier.recipe.config import RunConfig
    from luthier.training.step import Loop

    config, out, take = RunConfig.load(None, overrides), os.environ.get("SCALE_OUT"), Loop.take
    if not out:
        train(config)
        return
    notes = Notes(Path(out, f"{os.environ.get('RANK', '0')}.jsonl"))

    def noted(self: Loop, index: int, **more: Any) -> bool:
        notes.before(self.model)
        taken = take(self, index, **more)
        named = list(self.model.named_parameters())
        sharded = [(name, each) for name, each in named if isinstance(each, DTensor)]
        blocks = sum(each.numel() for name, each in sharded if ".layers." in name)
        trained = sum(each.numel() for _, each in named if each.requires_grad)
        whole = sum(each.numel() for name, each in named if each.requires_grad and not isinstance(each, DTensor))
        counts = {"sharded": sum(each.numel() for _, each in sharded), "blocks": blocks}
        notes.step(self.model, self.optimizer, **counts, trained=trained, whole=whole, sent=sent())
        return taken

    Loop.take = noted  # type: ignore[method-assign]
    machine.watch_peak = lambda device: None  # it would forget the peak of loading, on the leader alone
    train(config)
    notes.end()


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
    """A folder with a decoder of 28 million parameters: config.json and the embedded base's tokenizer."""
    import shutil

    from luthier.builtin import BASE

    folder = Path(place, "base")
    shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    config |= {"num_key_value_heads": 8, "head_dim": 64, "layer_types": ["full_attention"] * 8}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def noted(place: str, world: int) -> list[list[dict[str, Any]]]:
    """The notes of each rank: its steps, and what came behind them."""
    files = [Path(place, f"{rank}.jsonl") for rank in range(world)]
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def held(name: str, world: int, parallel: str) -> list[list[dict[str, Any]]]:
    """The notes of each rank of a short run."""
    with tempfile.TemporaryDirectory() as place:
        overrides = [f"model={base(place)}", "model.init=random", "data=builtin:reviews", f"train.steps={SHORT}"]
        overrides += [*METHODS[name], f"run={place}/run", "data.validation=none", f"train.parallel={parallel}"]
        overrides += ["train.micro_batch=16", "train.packing=false"]  # one pass a step
        luthier(world, overrides, 1, SCALE_OUT=place)
        return noted(place, world)


HELD = ("weights", "gradients", "optimizer")
MEMORY = ["weights", "gradients", "optimizer", "all tensors", "resident: first step", "later steps", "whole run"]


def memory_of(ranks: list[list[dict[str, Any]]]) -> list[int]:
    """Bytes of the columns of MEMORY, each of the rank that has most."""

    def most(lines: list[dict[str, Any]]) -> list[int]:
        *steps, end = lines
        parts = [steps[-1][key] for key in HELD]
        peaks = [line["resident"] for line in steps]
        return [*parts, sum(parts), peaks[0], max(peaks[1:]), max(*peaks, end["resident"])]

    return [max(each) for each in zip(*map(most, ranks), strict=True)]


def memory() -> None:
    print(f"| method | ranks | {' | '.join(MEMORY)} | all tensors x ranks / one rank |")
    print(f"|---|{'---:|' * (len(MEMORY) + 2)}")
    for name in METHODS:
        whole = 0
        for world in (1, 2, 3, 4):
            sizes = memory_of(held(name, world, "fsdp"))
            whole = whole or sizes[3]
            cells = " | ".join(
                f"{size / 1e6:.2f} MB" if place < 4 else f"{size / 1e6:.0f} MB" for place, size in enumerate(sizes)
            )
            print(f"| {name} | {world} | {cells} | {sizes[3] * world / whole:.3f} |", flush=True)


ARMS = {
    "transformers.Trainer": None,
    "Luthier, padded": ["train.packing=false", f"train.micro_batch={trainer.BATCH}"],
    "Luthier": [],
}
"""Overrides of each arm of `trainer`."""
WARM = 4
"""Steps of it that are not timed."""


def beside_trainer(rounds: int, steps: int) -> None:
    """Losses, speed and memory of two ranks under FSDP2: Luthier's and those of transformers.Trainer."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        tokens = trainer.make(Path(folder), base(folder), steps)
        losses: dict[str, list[float]] = {}
        sizes: dict[str, list[int]] = {}
        for number in range(rounds):
            for name in list(ARMS)[:: 1 if number % 2 else -1]:
                losses[name], ranks = of_arm(name, folder, steps)
                sizes[name] = memory_of(ranks)
                counted, first, last = sum(tokens[WARM:]), WARM - 1, steps - 1
                seconds, processor = (
                    [each[last][key] - each[first][key] for each in ranks] for key in ("seconds", "processor")
                )
                rates[name].append((counted / max(seconds), counted / sum(processor)))
                print(
                    "round {}: {}: {:,.0f} tokens/s, {:,.0f} a processor second".format(
                        number + 1, name, *rates[name][-1]
                    ),
                    flush=True,
                )
    print(f"\n| step | {' | '.join(ARMS)} | largest relative difference |\n|---:|{'---:|' * (len(ARMS) + 1)}")
    for step, (theirs, *ours) in enumerate(zip(*(losses[name] for name in ARMS), strict=True), 1):
        apart = max(abs(each / theirs - 1) for each in ours)
        print(f"| {step} | {' | '.join(f'{each:.6f}' for each in (theirs, *ours))} | {apart:.1e} |")
    print(f"\n| of the rank with most | {' | '.join(MEMORY)} |\n|---|{'---:|' * len(MEMORY)}")
    for name, found in sizes.items():
        print(f"| {name} | {' | '.join(f'{size / 1e6:.1f} MB' for size in found)} |")
    print("\n| over transformers.Trainer | tokens/s | tokens a processor second |\n|---|---:|---:|")
    for name in list(ARMS)[1:]:
        cells = []
        for kind in range(2):
            ratios = [
                own[kind] / other[kind] for own, other in zip(rates[name], rates["transformers.Trainer"], strict=True)
            ]
            cells.append(f"{mean(ratios):.2f}" + (f" ± {stdev(ratios):.2f}" if rounds > 1 else ""))
        print(f"| {name} | {' | '.join(cells)} |")


def of_arm(name: str, folder: str, steps: int) -> tuple[list[float], list[list[dict[str, Any]]]]:
    """The loss of each step of an arm, and the notes of its ranks."""
    for old in Path(folder).glob("?.jsonl"):
        old.unlink()
    if (overrides := ARMS[name]) is None:
        start(2, ["benchmarks.scale.trainer", folder], 1)
        return json.loads(Path(folder, "losses.json").read_text()), noted(folder, 2)
    with tempfile.TemporaryDirectory() as run:
        words = [f"model={folder}/base", "data=builtin:reviews", "task=chat", "data.validation=none", "method=full"]
        words += [*overrides, f"train.steps={steps}", "train.parallel=fsdp", "train.lr=1e-4", "train.schedule=constant"]
        words += ["train.warmup=0", "train.save_every=1e6", f"train.batch_size={trainer.BATCH}", f"run={run}/run"]
        luthier(2, words, 1, SCALE_OUT=folder)
        lines = [json.loads(line) for line in Path(run, "run", "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], noted(folder, 2)


def scatters() -> None:
    """One rank: print what a reduce-scatter sends over what NCCL's would, which is (n - 1) times its input in all."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    given, out = torch.ones(dist.get_world_size() * 2_500_000), torch.empty(2_500_000)
    dist.barrier()
    before = sent()
    dist.reduce_scatter_tensor(out, given)
    dist.barrier()
    if dist.get_rank() == 0:
        print((sent() - before) / (given.nbytes * (dist.get_world_size() - 1)))


def traffic() -> None:
    if os.environ.get("SCALE_ALONE") != "1":
        inner = f"ip link set lo up && SCALE_ALONE=1 exec {sys.executable} -m benchmarks.scale.run traffic"
        raise SystemExit(subprocess.run(["unshare", "--net", "sh", "-c", inner], check=False).returncode)
    print("| method | parallel | ranks | sent in a step, all ranks | formula | measured / formula |")
    print("|---|---|---:|---:|---:|---:|")
    factors = {world: float(start(world, ["benchmarks.scale.run", "scatters"], 1)) for world in (2, 3, 4)}
    for name, parallel in (("lora", "ddp"), ("full", "ddp"), ("lora", "fsdp"), ("full", "fsdp")):
        for world in (2, 3, 4):
            *lines, _ = held(name, world, parallel)[0]
            moved = (lines[-1]["sent"] - lines[SETTLED]["sent"]) / (len(lines) - 1 - SETTLED)
            sharded, blocks, trained, whole = (lines[0][key] for key in ("sharded", "blocks", "trained", "whole"))
            # A layer is gathered for the forward and the backward pass, what is outside of layers once; gradients of
            # shards are scattered, and those of what is whole on each rank summed.
            numbers = blocks + sharded + round(factors[world]) * (trained - whole) + 2 * whole
            formula = 4 * (world - 1) * numbers
            print(
                f"| {name} | {parallel} | {world} | {moved / 1e6:.2f} MB | {formula / 1e6:.2f} MB | {moved / formula:.2f} |",
                flush=True,
            )
    print(
        f"gloo's reduce-scatter sends {', '.join(f'{each:.2f}' for each in factors.values())} times NCCL's (2, 3, 4 ranks)"
    )


def main() -> None:
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2:])
        return
    if sys.argv[1:2] == ["scatters"]:
        scatters()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "trainer", "traffic"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="steps of `trainer`")
    options = parser.parse_args()
    does = {"speed": lambda: speed(options.rounds), "memory": memory, "traffic": traffic}
    does["trainer"] = lambda: beside_trainer(options.rounds, options.steps)
    does[options.what]()


if __name__ == "__main__":
    main()
