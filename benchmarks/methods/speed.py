"""Is a method as fast here as PEFT's own module in the same loop? Both train in turns, a step each; ratios of time.

    python -m benchmarks.methods.speed                     # all methods that PEFT has; minutes on two cores
    python -m benchmarks.methods.speed --arms lora ia3 --steps 8
    python -m benchmarks.methods.speed --table             # the table of README.md, from speed.jsonl

The same loop, loss, rows, layout and optimizer for both: what differs is the module, and what luthier.kernels puts into a
model while it trains. Rows share sequences (and attend row by row, on both sides) where PEFT's module can keep them
apart, else those of like length are padded. Weights are random, in bfloat16, with Qwen2-0.5B's width, two layers and a
small vocabulary, so that the head, which is the same on both sides, hides nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
from peft import PrefixTuningConfig, TaskType, get_peft_model
from torch import nn

import luthier
from benchmarks.methods.run import HERE, QUANTIZED, read
from benchmarks.record import Table, keep, put
from luthier.data.batches import micro_batches
from luthier.kernels.apply import patched
from luthier.kernels.attention import row_by_row
from luthier.methods.base import METHODS, Method
from luthier.models.load import device, load_model
from luthier.models.settings import ModelConfig
from luthier.rendering.row import Row
from luthier.tasks.base import TASKS
from luthier.training.settings import TrainConfig
from luthier.training.step import Batch, Loop, accelerator_on, build_optimizer

FILE, PAGE = HERE / "speed.jsonl", HERE / "README.md"
ARMS = [
    "lora",
    "rslora",
    "dora",
    "pissa",
    "adalora",
    "qlora",
    "lora_int8",
    "ia3",
    "vera",
    "oft",
    "prefix",
    "p_tuning_v2",
    "prompt",
    "p_tuning",
]
"""What PEFT has as well; LoRA+ is LoRA to it."""
VOCABULARY = 2048


def save_base(folder: Path, layers: int) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def rows(count: int) -> list[Row]:
    """Of IMDB's lengths, half of each learned."""
    draw, made = random.Random(0), []
    for _ in range(count):
        size = min(452, max(30, int(draw.lognormvariate(5.44, 0.6))))
        ids = [draw.randrange(3, VOCABULARY) for _ in range(size)]
        made.append(Row(ids, [-100] * (size // 2) + ids[size // 2 :], ""))
    return made


def theirs(method: Method, base: Any, steps: int) -> nn.Module:
    """The method as PEFT has it."""
    fields: Any = method
    if method.name in ("prefix", "p_tuning_v2"):
        projects = method.name == "prefix"
        config: Any = PrefixTuningConfig(
            num_virtual_tokens=fields.length,
            prefix_projection=projects,
            encoder_hidden_size=fields.hidden if projects else None,
        )
    else:
        config = fields.peft_config(base, steps)
    config.task_type = TaskType.CAUSAL_LM
    tuned: nn.Module = get_peft_model(base, config)  # type: ignore[assignment]
    for name, parameter in tuned.named_parameters():
        if ".ranknum." in name:  # a count; PEFT makes it trainable where the base is in half precision
            parameter.requires_grad_(False)
        elif parameter.requires_grad:
            parameter.data = parameter.data.float()
    return tuned


def loop(model: nn.Module, method: Method, config: TrainConfig, folder: Path) -> Loop:
    optimizer = build_optimizer(model, config, 1e-4)
    where = device(ModelConfig(path=str(folder)))
    accelerator = accelerator_on(where, config.precision_on(where))
    task = TASKS.parse("chat")
    return Loop(
        accelerator.prepare(model),
        task,
        accelerator.prepare(optimizer),
        torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        accelerator,
        penalty=lambda: method.penalty(model),
        after_step=lambda index: method.after_step(model, index),
    )


def batches(method: Method, given: list[Row]) -> list[Batch]:
    """The micro-batches of a step, in a layout that both sides can take."""
    task, pack = TASKS.parse("chat"), 1024 if _both_pack(method) else None
    cut = micro_batches([len(row.ids) for row in given], micro_batch=2, by_length=True, micro_tokens=None, pack=pack)
    return [
        task.pack([given[i] for i in micro], even=True) if pack else task.collate([given[i] for i in micro], 0)
        for micro in cut
    ]


def _both_pack(method: Method) -> bool:
    """PEFT's prefix is seen by the first row alone."""
    return method.packs and method.name not in ("prefix", "p_tuning_v2")


def measure(arm: str, folder: Path, steps: int, given: list[Row]) -> dict[str, Any]:
    """Both sides' seconds a step of this process's own processor time, in turns, after one step each to warm up."""
    name, quantize = QUANTIZED.get(arm, (arm, "none"))
    method = METHODS.parse(name)
    config = TrainConfig(steps=steps + 1, precision="bf16")
    source = ModelConfig.model_validate({"path": str(folder), "dtype": "bfloat16", "quantize": quantize})
    loops: dict[str, Loop] = {}
    for side in ("luthier", "peft"):
        torch.manual_seed(0)
        base = load_model(source, str(folder), labels=None, tokenizer=SimpleNamespace(pad_token_id=0))  # type: ignore[arg-type]
        tuned = method.attach(base, steps=steps + 1) if side == "luthier" else theirs(method, base, steps + 1)
        loops[side] = loop(tuned, method, config, folder)
    cut, packed = batches(method, given), _both_pack(method)
    seconds: dict[str, list[float]] = {side: [] for side in loops}
    losses: dict[str, float] = {}
    for index in range(steps + 1):
        for side in sorted(loops, reverse=bool(index % 2)):
            with ExitStack() as stack:
                model = loops[side].model
                if side == "luthier":
                    stack.enter_context(patched(model, packed))
                elif packed:
                    stack.enter_context(row_by_row(model))
                began = time.process_time()
                losses[side] = loops[side].gradient(cut).loss
                loops[side].take(index + 1)
                seconds[side].append(time.process_time() - began)
    ratios = [b / a for a, b in zip(seconds["luthier"][1:], seconds["peft"][1:], strict=True)]
    return {
        "arm": arm,
        "layout": "packed" if packed else "padded",
        "tokens": sum(len(row.ids) for row in given),
        "luthier": mean(seconds["luthier"][1:]),
        "peft": mean(seconds["peft"][1:]),
        "ratio": mean(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "steps": steps,
        "losses": losses,
        "threads": torch.get_num_threads(),
        "versions": f"luthier {luthier.__version__}, peft {peft.__version__}, torch {torch.__version__}",
    }


def tables() -> list[Table]:
    """The table of README.md, from the newest line of each arm."""
    lines = {line["arm"]: line for line in read(FILE)}
    made = [
        "| method | layout | Luthier, seconds a step | PEFT's module, seconds a step | ratio (range) |",
        "|---|---|---|---|---|",
    ]
    made += [
        f"| {arm} | {line['layout']} | {line['luthier']:.2f} | {line['peft']:.2f} | "
        f"{line['ratio']:.2f} ({line['least']:.2f} to {line['most']:.2f}) |"
        for arm in ARMS
        if (line := lines.get(arm))
    ]
    if lines:
        one = next(iter(lines.values()))
        made += [
            "",
            f"Processor seconds of a step of {one['tokens']:,} tokens, {one['steps']} steps each in turns; {one['versions']}, {one['threads']} threads.",
        ]
    command = "python -m benchmarks.methods.speed --table"
    return [Table(PAGE, command, "\n".join(made), (FILE,), "<!-- end of speed -->")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--table", action="store_true", help="only write the table into README.md")
    given = parser.parse_args()
    if not given.table:
        with tempfile.TemporaryDirectory(prefix="luthier-speed-") as place:
            save_base(Path(place), given.layers)
            for arm in given.arms:
                line = measure(arm, Path(place), given.steps, rows(given.rows))
                print(json.dumps(line), flush=True)
                keep(FILE, line)
    put(tables())


if __name__ == "__main__":
    main()
