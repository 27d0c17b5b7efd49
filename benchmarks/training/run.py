"""Training speed and memory beside what users would otherwise run: same model shape, rows, tokens and labels.

    python -m benchmarks.training.run --layers 6 --rows 48 --rounds 2
    python -m benchmarks.training.run --table

Each arm runs in a process of its own, in alternation. The model has Qwen2-0.5B's width and vocabulary with random
weights and `--layers` of its 24 layers; rows have IMDB's lengths, and `--learned` says whether half of a row is learned
or two tokens of it. Rank 8 on all seven projections, dropout 0.1, 16 rows a step, bfloat16. Useful tokens per second
count no padding and no loading; memory is the process's peak.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results.jsonl", HERE / "README.md"
BEGIN, END = "<!-- made by python -m benchmarks.training.run --table: begin -->", "<!-- end -->"
STEP, MICRO, LIMIT = 16, 4, 512
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

ARMS = {
    "luthier": "Luthier: packed, fused, loss without logits",
    "luthier-padded": "Luthier, rows padded to the longest of four",
    "trainer": "transformers.Trainer + PEFT, rows of like length together",
    "trainer-recipe": "transformers.Trainer + PEFT, padded to 512, checkpointing (the recipe as users copy it)",
}


def make(folder: Path, layers: int, rows: int, learned: str) -> None:
    """Model folder, rows as jsonl for Luthier, and the very same tokens as lists for the others."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from luthier.config import RunConfig
    from luthier.data.encode import encode
    from luthier.data.prepare import load
    from luthier.data.template import Template
    from luthier.models.load import load_tokenizer, locate

    builtin = RunConfig().model
    tokenizer = load_tokenizer(builtin, locate(builtin))
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=layers, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=151_936, tie_word_embeddings=True, max_position_embeddings=4096, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(0)
    words = [
        "the",
        "film",
        "was",
        "good",
        "and",
        "the",
        "actors",
        "played",
        "it",
        "well",
        "but",
        "its",
        "end",
        "came",
        "too",
        "soon",
        "for",
        "me",
    ]
    with (folder / "rows.jsonl").open("w") as out:
        for _ in range(rows):
            size = min(LIMIT - 60, max(30, int(draw.lognormvariate(5.44, 0.6))))  # tokens; about one a word
            text = draw.choices(words, k=size)
            answer = size // 2 if learned == "half" else 1
            row = [("user", " ".join(text[: size - answer])), ("assistant", " ".join(text[size - answer :]))]
            out.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) + "\n")
    data_config = recipe(folder, rows, packing=True).data
    data = load(data_config, None)
    encode(data, Template(tokenizer), data_config, LIMIT)
    (folder / "tokens.json").write_text(json.dumps([{"input_ids": row.ids, "labels": row.labels} for row in data.rows]))


def recipe(folder: Path, rows: int, *, packing: bool) -> Any:
    from luthier.config import RunConfig

    return RunConfig.model_validate({
        "run": str(folder / f"run-{time.time_ns()}"),
        "model": {"path": str(folder / "model"), "dtype": "bfloat16"},
        "data": {"path": str(folder / "rows.jsonl"), "validation": "none", "cache": False},
        "method": {"name": "lora", "rank": 8, "alpha": 32, "dropout": 0.1, "targets": TARGETS},
        "train": {
            "steps": rows // STEP, "batch_size": STEP, "micro_batch": MICRO, "packing": packing, "lr": 1e-4,
            "max_length": LIMIT * (MICRO if packing else 1), "precision": "bf16", "save_every": 10_000,
        },
        "evaluate": {"before": False, "generate": 0},
    })  # fmt: skip


def ours(folder: Path, rows: int, *, packing: bool) -> dict[str, Any]:
    from luthier import run

    result = run.train(recipe(folder, rows, packing=packing))
    lines = [json.loads(line) for line in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    return {
        "seconds": sum(s["seconds"] for s in steps),
        "first": steps[0]["seconds"],
        "losses": [s["loss"] for s in steps],
    }


def theirs(folder: Path, *, as_copied: bool) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
    model = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=TARGETS, task_type="CAUSAL_LM")
    )
    if as_copied:
        model.enable_input_require_grads()
    data = Dataset.from_list(json.loads((folder / "tokens.json").read_text()))

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        longest = LIMIT if as_copied else max(len(row["input_ids"]) for row in rows)

        def padded(key: str, fill: int) -> Any:
            return torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows])

        mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows])
        return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": mask}

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()
            self.first = 0.0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.first = self.first or time.perf_counter() - self.began

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.began

    clock = Clock()
    sampling = {} if as_copied else {"train_sampling_strategy": "group_by_length"}
    arguments = TrainingArguments(
        str(folder / "out"), per_device_train_batch_size=MICRO, gradient_accumulation_steps=STEP // MICRO,
        num_train_epochs=1, learning_rate=1e-4, report_to="none", save_strategy="no", logging_steps=1, use_cpu=True,
        bf16=not as_copied, gradient_checkpointing=as_copied, remove_unused_columns=False, disable_tqdm=True, **sampling,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate, callbacks=[clock])
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"seconds": clock.seconds, "first": clock.first, "losses": losses}


def work(arm: str, folder: Path, rows: int) -> None:
    if arm.startswith("luthier"):
        made = ours(folder, rows, packing=arm == "luthier")
    else:
        made = theirs(folder, as_copied=arm == "trainer-recipe")
    made["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print("made " + json.dumps(made))


def measured(arm: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training.run", "--work", arm, "--folder", str(folder)]
    done = subprocess.run([*command, "--rows", str(given.rows)], capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("made ")]
    if not found:
        raise SystemExit(f"{arm} did not finish:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    line: dict[str, Any] = json.loads(found[-1].removeprefix("made "))
    tokens = json.loads((folder / "tokens.json").read_text())
    useful = sum(len(row["input_ids"]) for row in tokens)
    line |= {
        "arm": arm, "layers": given.layers, "rows": given.rows, "learned": given.learned, "tokens": useful,
        "tokens_per_second": round(useful / line["seconds"], 1), "first_loss": line["losses"][0],
        "processors": os.cpu_count(), "versions": versions(),
    }  # fmt: skip
    line.pop("losses")
    return line


def versions() -> dict[str, str]:
    import peft
    import torch
    import transformers

    import luthier

    return {m.__name__: m.__version__ for m in (luthier, torch, transformers, peft)}


def table() -> None:
    """Put the tables into README.md."""
    found: dict[tuple[int, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for text in RESULTS.read_text().splitlines():
        line = json.loads(text)
        found[line["layers"], line["learned"]][line["arm"]].append(line)
    lines = []
    for (layers, learned), arms in sorted(found.items()):
        best = mean(line["tokens_per_second"] for line in arms["luthier"])
        one = arms["luthier"][0]
        lines += [
            f"### {layers} layers, {'half of the tokens' if learned == 'half' else 'two tokens a row'} learned", "",
            "| what | useful tokens/s | Luthier's over it | first step | peak memory | loss of step 1 |",
            "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for arm, title in ARMS.items():
            if runs := arms.get(arm):
                speeds = [run["tokens_per_second"] for run in runs]
                spread = f" ± {stdev(speeds):.1f}" if len(speeds) > 1 else ""
                lines.append(
                    f"| {title} | {mean(speeds):.1f}{spread} | {best / mean(speeds):.2f} | "
                    f"{mean(run['first'] for run in runs):.1f} s | {max(run['peak_mb'] for run in runs):,} MB | "
                    f"{runs[0]['first_loss']:.3f} |"
                )
        told = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        lines += ["", f"{len(arms['luthier'])} rounds of {one['rows']} rows ({one['tokens']:,} tokens), "
                  f"{one['processors']} processors; {told}.", ""]  # fmt: skip
    page = PAGE.read_text(encoding="utf-8")
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    PAGE.write_text(page[:begin] + "\n" + "\n".join(lines) + page[end:], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--learned", choices=["half", "two"], default="half")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--work", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.table:
        table()
        return
    if given.work:
        work(given.work, given.folder, given.rows)
        return
    folder = Path(tempfile.mkdtemp(prefix="luthier-training-"))
    try:
        make(folder, given.layers, given.rows, given.learned)
        for _ in range(given.rounds):
            for arm in given.arms:
                line = measured(arm, folder, given)
                with RESULTS.open("a") as out:
                    out.write(json.dumps(line) + "\n")
                print(
                    json.dumps({k: line[k] for k in ("arm", "tokens_per_second", "peak_mb", "first_loss")}), flush=True
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
